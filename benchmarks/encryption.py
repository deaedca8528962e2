"""Measures what encryption at rest costs training: runs that are encrypted and runs that are not, in turn.

    python benchmarks/encryption.py [--rounds 3] [--steps 60] [--saves 3] [--shape 6,384,6,256,8,8192]

A run is `drumline train` of so many steps, with so many checkpoints, on a store of its own; the run that is not encrypted comes
twice, as the control. Printed are the ratios of the seconds of all steps but the first two, which compile, and of the whole
program, saves included, and how fast weights are written and read. The bar is 5 percent of training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rows import paired
from shaped_run import FIRST_SHAPE, SMALL_SHAPE, drumline, prepare_run, read_metrics, shape_of

from trainer.encryption.files import PLAIN, Encryption
from trainer.encryption.keys import MasterKey, create_key

BAR = 1.05
NUM_SINGLE_STEPS = 2
FILE_BYTES = 2**28


@dataclass
class Leg:
    """What a kind of run took, an entry a round."""

    options: list[str]
    steps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--shape", default=FIRST_SHAPE)
    parser.add_argument("--small", action="store_true", help="a tiny model, to see whether it works")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drumline-encryption-") as name:
        folder = Path(name)
        _measure_runs(
            folder, arguments.rounds, arguments.steps, arguments.saves, SMALL_SHAPE if arguments.small else arguments.shape
        )
        _measure_files(folder, 2**22 if arguments.small else FILE_BYTES)


def _measure_runs(folder: Path, rounds: int, steps: int, saves: int, shape: str) -> None:
    path = prepare_run(folder, shape_of(shape), steps)
    create_key(folder / "key")
    sealed = [f"data.store={folder / 'sealed'}", "security.encrypt=true", f"security.key_file={folder / 'key'}"]
    drumline("prepare", str(path), *sealed)
    legs = {"plain": Leg([]), "encrypted": Leg(sealed), "plain again": Leg([])}
    for number in range(rounds):
        for name, leg in legs.items():
            run = f"{name.replace(' ', '-')}-{number}"
            began = time.perf_counter()
            drumline("train", str(path), f"run.name={run}", f"checkpoint.every={steps // saves}", *leg.options)
            leg.whole.append(time.perf_counter() - began)
            leg.steps.append(sum(step["step_seconds"] for step in read_metrics(folder, run)[NUM_SINGLE_STEPS:]))
    plain, encrypted, again = legs.values()
    print(f"{shape}: {steps} steps, {saves} checkpoints, {rounds} rounds; bar at most {BAR}")
    for what in ("steps", "whole"):
        ratios, control = (paired(getattr(leg, what), getattr(plain, what)) for leg in (encrypted, again))
        verdict = "met" if statistics.median(ratios) <= BAR else "MISSED"
        spread = f"({min(ratios):.3f} ... {max(ratios):.3f})"
        seconds = f"{statistics.median(getattr(encrypted, what)):.2f} over {statistics.median(getattr(plain, what)):.2f} s"
        print(
            f"{what:6} {statistics.median(ratios):.3f} {spread}, control {statistics.median(control):.3f}: {verdict}; {seconds}"
        )


def _measure_files(folder: Path, num_bytes: int) -> None:
    content = np.random.default_rng(1).bytes(num_bytes)
    for what, encryption in (("plain", PLAIN), ("encrypted", Encryption(MasterKey(bytes(32)), is_on=True))):
        began = time.perf_counter()
        encryption.write_file(folder / "file", content, "file")
        written = time.perf_counter()
        encryption.read_bytes(folder / "file", "file")
        read = time.perf_counter()
        rates = (num_bytes / (written - began) / 1e9, num_bytes / (read - written) / 1e9)
        megabytes = f"a file of {num_bytes / 1e6:.0f} MB"
        print(f"{what}: {megabytes} is hashed, written and synced at {rates[0]:.2f} GB/s, read at {rates[1]:.2f} GB/s")


if __name__ == "__main__":
    main()
