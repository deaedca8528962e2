"""Ranks under the watchdog, as processes without TensorFlow, one of which comes to harm, and what becomes of them.

    python -m tests.unit.watched_ranks '{"a name": {"harm": "kill", "rank": 1, "num_ranks": 3, "folder": ...}, ...}'

Not under test, and so as simple as can be, is the distribution: it sums over files.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from trainer.config import WatchdogConfig
from trainer.errors import Diverged, DrumlineError, UserError
from trainer.monitor.watchdog import Watchdog

HARMED_STEP = 4
LAST_STEP = 8
STEP_SECONDS = 0.4  # so that the ranks have reported before one comes to harm


@dataclass
class Distribution:
    rank: int
    num_processes: int
    folder: Path
    address: str = "localhost"
    num_sums: int = 0

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        self.num_sums += 1
        part = self.folder / f"sum-{self.num_sums}-{self.rank}"
        with part.open("wb") as file:
            np.save(file, values)
        part.rename(part.with_suffix(".npy"))
        return np.sum([self._wait_for(rank) for rank in range(self.num_processes)], axis=0)

    def _wait_for(self, rank: int) -> np.ndarray:
        path = self.folder / f"sum-{self.num_sums}-{rank}.npy"
        while not path.exists():
            if (self.folder / "broken").exists():
                raise RuntimeError("collective aborted: connection reset by peer")
            time.sleep(0.01)
        return np.load(path)


def main(scenarios: dict[str, dict[str, Any]]) -> None:
    """Plays all of them at once: they mostly wait. Each leaves `outcome.json` in its folder."""
    for pid in [play(**scenario) for scenario in scenarios.values()]:
        os.waitpid(pid, 0)


def play(harm: str, rank: int, num_ranks: int, folder: str, **limits: float) -> int:
    pid = os.fork()
    if pid:
        return pid
    pids = [start(each, num_ranks, Path(folder), harm, rank, limits) for each in range(num_ranks)]
    statuses: dict[int, int] = {}
    # Sums come two before the first step; this one is of the harmed step.
    while harm in ("kill", "break", "stop", "suspend") and not (Path(folder) / f"sum-{HARMED_STEP + 3}-{rank}.npy").exists():
        time.sleep(0.01)
    began = time.monotonic()
    if harm in ("kill", "break"):
        os.kill(pids[rank], signal.SIGKILL)
    if harm == "break":
        (Path(folder) / "broken").touch()
    if harm == "stop":
        os.kill(pids[rank], signal.SIGSTOP)
        wait({each: pid for each, pid in enumerate(pids) if each != rank}, statuses)
        os.kill(pids[rank], signal.SIGCONT)
    if harm == "suspend":
        for number, seconds in ((signal.SIGSTOP, 6.5), (signal.SIGCONT, 0.0)):
            for pid in pids:
                os.kill(pid, number)
            time.sleep(seconds)
    wait({each: pid for each, pid in enumerate(pids) if each not in statuses}, statuses)
    told = [(Path(folder) / f"stderr-{each}").read_text() for each in range(num_ranks)]
    codes = [statuses[each] for each in range(num_ranks)]
    outcome = {"codes": codes, "told": told, "seconds": time.monotonic() - began}
    (Path(folder) / "outcome.json").write_text(json.dumps(outcome))
    os._exit(0)


def wait(pids: dict[int, int], statuses: dict[int, int]) -> None:
    """Notes the exit codes; after 20 s those that are left are killed, and noted as such."""
    deadline = time.monotonic() + 20
    while pids:
        for rank, pid in list(pids.items()):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                statuses[rank] = os.waitstatus_to_exitcode(status)
                del pids[rank]
        time.sleep(0.01)


def start(rank: int, num_ranks: int, folder: Path, harm: str, harmed: int, limits: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT), 2)
    code = 0
    try:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        train(Distribution(rank, num_ranks, folder), folder / "run", harm, harm == "diverge" or rank == harmed, limits)
    except DrumlineError as error:
        print(f"drumline: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def train(distribution: Distribution, run: Path, harm: str, is_harmed: bool, limits: dict[str, Any]) -> None:
    config = WatchdogConfig.model_validate({"least_seconds": 30.0, "times_expected": 2.0, "silence_seconds": 3.0} | limits)
    with Watchdog(config, run) as watchdog:
        if harm == "never join" and is_harmed:
            wait_for_ever()
        if harm == "be out of reach" and is_harmed:
            distribution.address = "no-such-host.invalid"
        watchdog.join(distribution)  # type: ignore[arg-type]  # it has what a watchdog asks for
        position = (0, "waiting for its batch")
        watchdog.position = lambda: position
        watchdog.phase("restoring", expected_seconds=0.1)
        for step in range(1, LAST_STEP + 1) if harm != "kill" else range(1, 1_000_000):
            watchdog.phase(f"training, step {step}", expected_seconds=0.1)
            position = (step, "computing")
            time.sleep(STEP_SECONDS)
            if step == HARMED_STEP and is_harmed:
                suffer(harm)
            position = (step, "waiting for the other ranks")
            distribution.sum_over_processes(np.zeros(1))


def suffer(harm: str) -> None:
    match harm:
        case "hang":
            wait_for_ever()
        case "hang with the log":
            logging.getLogger().handlers[0].acquire()
            wait_for_ever()
        case "raise":
            raise ValueError("seven is not a number\nand more")
        case "mistake":
            raise UserError("the disk of this rank is full: delete something")
        case "diverge":
            raise Diverged("the loss is not finite")
        case "hold the interpreter":
            ctypes.PyDLL(None).sleep(2)


def wait_for_ever() -> NoReturn:
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
