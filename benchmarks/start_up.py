"""Measures how long it takes to the first step, and to the first batch of a run that goes on from a late step.

    python benchmarks/start_up.py [--rounds 3] [--shape 6,384,6,256,8,8192]

First step (row 12): seconds from the start of `drumline train` until the line of its first step is in metrics.jsonl, over
those of a script with the hand-written step of step_time.py, from its start until that step is done. Files are cached: both
are started once before. Both compile as they are: `drumline` as `train.compile: auto` chooses, the script to a graph.

First batch (row 13): no run here gets to step 1,000,000, but a run that goes on differs from a new one only in the position
at which it opens the pipeline. So a process of its own opens store and pipeline by the functions that `train` calls, at
that position or at step 10, and ends its measurement with the first batch. The store has some hundred steps an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rows import Row, at_most, paired, report
from shaped_run import FIRST_SHAPE, SMALL_SHAPE, prepare_run, shape_of

EARLY_STEP, LATE_STEP = 10, 1_000_000
POLL_SECONDS = 0.005
LONGEST_SECONDS = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default=FIRST_SHAPE)
    parser.add_argument("--rows", type=Path, help="adds the rows to this file")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see whether it works")
    parser.add_argument("--hand-written", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first-batch", nargs=2, metavar=("CONFIG", "STEP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SMALL_SHAPE if arguments.small else arguments.shape
    if arguments.hand_written:
        _take_first_step(shape)
    elif arguments.first_batch:
        _read_first_batch(Path(arguments.first_batch[0]), int(arguments.first_batch[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            rows = _measure(Path(directory), arguments.rounds, shape)
        report(rows, arguments.rows)


def _measure(directory: Path, rounds: int, shape: str) -> list[Row]:
    path = prepare_run(directory, shape_of(shape), 1_000)
    contestants: dict[str, Callable[[], float]] = {
        "train": lambda: _seconds_to_first_step(directory, path),
        "hand-written": lambda: _seconds_to_line("--hand-written", "--shape", shape),
        "train again": lambda: _seconds_to_first_step(directory, path),
        "early": lambda: _seconds_to_line("--first-batch", str(path), str(EARLY_STEP)),
        "late": lambda: _seconds_to_line("--first-batch", str(path), str(LATE_STEP)),
        "early again": lambda: _seconds_to_line("--first-batch", str(path), str(EARLY_STEP)),
    }
    for name in ("train", "hand-written", "early"):
        contestants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in contestants if number % 2 == 0 else reversed(contestants):
            seconds[name].append(contestants[name]())
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def row(number: int, what: str, bar: float, above: str, below: str, again: str, same: str) -> Row:
        control = statistics.median(paired(seconds[again], seconds[same]))
        note = f"{medians[above]:.2f} s over {medians[below]:.2f} s"
        return at_most(number, what, bar, paired(seconds[above], seconds[below]), control, note)

    first_step = f"start to first step over the hand-written script's, {shape}"
    first_batch = f"start to first batch at step {LATE_STEP:,} over step {EARLY_STEP}"
    return [
        row(12, first_step, 1.15, "train", "hand-written", "train again", "train"),
        row(13, first_batch, 1.05, "late", "early", "early again", "early"),
    ]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _seconds_to_first_step(directory: Path, path: Path) -> float:
    """Of a new run, which is then killed."""
    shutil.rmtree(directory / "runs", ignore_errors=True)
    metrics = directory / "runs/run/metrics.jsonl"
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "trainer", "train", str(path)], env=_environment(), stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None or time.perf_counter() - began > LONGEST_SECONDS:
                    raise SystemExit(f"drumline train took no step (exit code {process.poll()}); try it with {path}'s content")
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - began
        finally:
            process.kill()
    assert json.loads(metrics.read_text().splitlines()[0])["step"] == 1
    return seconds


def _seconds_to_line(*arguments: str) -> float:
    """Until this program, started with the arguments, prints a line."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    if not line:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {process.returncode}; run this with it to see why")
    return seconds


def _take_first_step(shape: str) -> None:
    from step_time import _hand_written

    _hand_written(shape_of(shape), "float32")(1)
    print("done", flush=True)


def _read_first_batch(path: Path, step: int) -> None:
    from trainer.config import plan_batches
    from trainer.config_io import load_config
    from trainer.data.corpus import open_corpus
    from trainer.data.pipeline import training_batches
    from trainer.distribution import connect

    config = load_config(path, [])
    corpus = open_corpus(config)
    distribution = connect(config.distribution)
    plan = plan_batches(config.train, distribution.num_replicas)
    first = step * plan.global_batch_size
    batches = distribution.iterate(training_batches(corpus.train, corpus.order, plan, first, distribution.replicas))
    next(batches)["inputs"].numpy()
    print("done", flush=True)


if __name__ == "__main__":
    main()
