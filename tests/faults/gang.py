"""Ranks as real processes: started as a user starts them, found by a mark in their environment, and brought to harm."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.training import BIN, ROOT, environment

MARK = "DRUMLINE_FAULTS_TEST"
# How long all processes of a run may take to be gone after one of its ranks was stopped or killed.
LIMIT_SECONDS = 30.0

Starter = Literal["horovodrun", "launch horovod", "launch local", "train"]
PROGRAM = Path(__file__).with_name("train_with_fault.py")
_RANK_SHELL = Path(__file__).with_name("rank.sh")


class Gang:
    """The processes of one start of a run. Whatever happens, none of them is left when the block ends."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.directory = directory / f"start-{self.mark}"
        self.directory.mkdir(parents=True)
        self._log = self.directory / "output.txt"
        command = [part.replace("{directory}", str(self.directory)) for part in command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment(**{MARK: self.mark, "PYTHONUNBUFFERED": "1"}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Gang:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            print(f"\n--- what the run said before the test failed:\n{self.output[-6000:]}")

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """Of the process that was started; None while it runs."""
        return self._process.poll()

    @property
    def rank_exit_codes(self) -> dict[int, int]:
        """Of the ranks under plain `horovodrun`, as far as they have ended."""
        return {int(path.name.removeprefix("exit-")): int(path.read_text()) for path in self.directory.glob("exit-*")}

    def pids(self) -> list[int]:
        """All processes of this start that have not ended, orphans included."""
        self._process.poll()  # else it stays a zombie
        return [pid for pid, variables in _environments() if variables.get(MARK) == self.mark]

    def rank(self, number: int) -> int:
        """The process that trains as this rank."""
        for pid, variables in _environments():
            if variables.get(MARK) == self.mark and _rank_of(variables) == number and _is_training(pid):
                return pid
        raise AssertionError(f"no process of rank {number} is there:\n{self.output[-3000:]}")

    def send(self, number: int, what: signal.Signals) -> None:
        """Sends a signal to one rank, and to nothing around it."""
        os.kill(self.rank(number), what)

    def kill(self) -> None:
        """Kills every process at once, as a machine that loses its power would."""
        while pids := self.pids():
            for pid in pids:
                _kill(pid)
        self._process.wait()

    def wait(self, seconds: float = 180.0) -> int:
        """The exit code, when every process is gone; the test fails where that takes longer."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None or self.pids():
            assert time.monotonic() < deadline, f"after {seconds:g} s still there: {[_command(pid) for pid in self.pids()]}"
            time.sleep(0.05)
        return int(self._process.returncode)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120.0, *, may_end: bool = False) -> bool:
        """Waits for a condition. With `may_end` it is False where the run ended before, which otherwise fails the test."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None and not condition():
                assert may_end, "the run ended too early"
                return False
            assert time.monotonic() < deadline, f"the run did not get that far within {seconds:g} s"
            time.sleep(0.003)
        return True


def command(starter: Starter, config: Path, *, fault: Mapping[str, object] | None = None) -> list[str]:
    """What starts a run on two ranks, or with `train` on one; the launchers do not start it again.

    With a `fault` (see train_with_fault.py) it is not the product's own program that the ranks run: `horovodrun` only.
    """
    drumline, horovodrun = str(BIN / "drumline"), [str(BIN / "horovodrun"), "-np", "2"]
    in_shell = [*horovodrun, str(_RANK_SHELL), "{directory}"]
    if fault is not None:
        assert starter == "horovodrun"
        return [*in_shell, sys.executable, str(PROGRAM), str(config), "{directory}", json.dumps(fault)]
    match starter:
        case "horovodrun":
            return [*in_shell, drumline, "train", str(config)]
        case "launch horovod":
            return [drumline, "launch", "horovod", str(config), "--workers", "2", "--restarts", "0"]
        case "launch local":
            return [drumline, "launch", "local", str(config), "--workers", "2", "--restarts", "0"]
        case "train":
            return [drumline, "train", str(config)]


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    """The environment that each process was started with."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended meanwhile, or another user's
            continue
        yield int(entry.name), dict(variable.split("=", 1) for variable in variables if "=" in variable)


def _rank_of(variables: Mapping[str, str]) -> int | None:
    if "HOROVOD_RANK" in variables:
        return int(variables["HOROVOD_RANK"])
    if "TF_CONFIG" in variables:
        return int(json.loads(variables["TF_CONFIG"])["task"]["index"])
    return None


def _is_training(pid: int) -> bool:
    """Whether it is a Python that trains, not a shell around it."""
    return re.match(r"\S*python[\d.]* .*( train |train_with_fault)", _command(pid)) is not None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # ended meanwhile
