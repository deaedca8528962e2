"""Measures two Horovod ranks, a core each, against two runs that know nothing of each other, a core each.

    python benchmarks/ranks.py [--rounds 5] [--shape 6,384,6,256,8,8192]

The ranks are those of `drumline launch horovod --workers 2`; each has half of the shape's batch, as has each of the two runs of
`drumline train` that begin at the same time. Compared are tokens per second, of the two runs together. What is missing
to 1 is what the reduction costs, and that the slower of two ranks sets the pace. The control is such runs against such runs.
One rank under each backend against `single` is step_time.py's.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from random_run import drumline, environment, prepare_run, shape_of, tokens_per_second
from rows import at_least, paired, report

FIRST_SHAPE, SMALL_SHAPE = "6,384,6,256,8,8192", "1,32,2,32,4,512"
CONTESTANTS = ("ranks", "runs", "runs again")
BAR = 0.93
NUM_STEPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default=FIRST_SHAPE)
    parser.add_argument("--rows", type=Path, help="adds the row to this file")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see whether it works")
    arguments = parser.parse_args()
    if find_spec("horovod") is None:
        print("nothing is measured: the package horovod (make horovod) missing")
        return
    shape = SMALL_SHAPE if arguments.small else arguments.shape
    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="drumline-ranks-") as directory:
        config = prepare_run(Path(directory), shape_of(shape))
        for number in range(arguments.rounds):
            for name in CONTESTANTS if number % 2 == 0 else reversed(CONTESTANTS):
                speed = two_ranks(config) if name == "ranks" else two_runs(config, shape_of(shape).batch // 2)
                print(f"round {number + 1}, {name}: {speed:,.0f} tokens/s", flush=True)
                speeds[name].append(speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    control = statistics.median(paired(speeds["runs"], speeds["runs again"]))
    what = f"two Horovod ranks over two independent runs, a core each, {shape}"
    note = f"{medians['ranks']:,.0f} over {medians['runs']:,.0f} tokens/s, half of the batch each"
    report([at_least(5, what, BAR, paired(speeds["ranks"], speeds["runs"]), control, note)], arguments.rows)


def two_ranks(config: Path) -> float:
    run = new_run(config, "ranks")
    given = [f"run.name={run.name}", f"train.steps={NUM_STEPS}", "distribution.backend=horovod"]
    command = drumline("-q", "launch", "horovod", config, *given, "--workers", "2")
    subprocess.run(command, check=True, env=environment(), stdout=sys.stderr)
    return tokens_per_second(run)


def two_runs(config: Path, batch: int) -> float:
    runs = [new_run(config, f"run-{core}") for core in (0, 1)]
    processes = []
    for core, run in enumerate(runs):
        given = [f"run.name={run.name}", f"train.steps={NUM_STEPS}", f"train.global_batch_size={batch}"]
        command = ["taskset", "-c", f"{core}", *drumline("-q", "train", config, *given)]
        processes.append(subprocess.Popen(command, env=environment(), stdout=sys.stderr))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"of two runs of drumline train the exit codes are {codes}")
    return sum(map(tokens_per_second, runs))


def new_run(config: Path, name: str) -> Path:
    run = config.parent / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    return run


if __name__ == "__main__":
    main()
