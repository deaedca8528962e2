"""Measures what the data pipeline can deliver against what training takes of it, and how long training waits for it.

    python benchmarks/input_pipeline.py [--rounds 3] [--shape 6,384,6,256,8,8192]

A round is a short `drumline train` (its first steps, which compile, are left out), and in this process the same pipeline
over the same store, read as `train` reads it: by `next` within one graph call, with nothing else to do. The pipeline is read
twice in each round, as the control.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rows import Row, at_least, at_most, paired, report
from shaped_run import FIRST_SHAPE, SMALL_SHAPE, drumline, prepare_run, read_metrics, shape_of

NUM_STEPS = 20
# The first call compiles; after the second the loop takes many steps a call.
NUM_SINGLE_STEPS = 2
NUM_BATCHES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default=FIRST_SHAPE)
    parser.add_argument("--rows", type=Path, help="adds the rows to this file")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see whether it works")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = _measure(Path(directory), arguments.rounds, SMALL_SHAPE if arguments.small else arguments.shape)
    report(rows, arguments.rows)


def _measure(directory: Path, rounds: int, shape: str) -> list[Row]:
    path = prepare_run(directory, shape_of(shape), NUM_STEPS)
    deliver = _pipeline(path)
    deliver()
    delivered, again, used, waits = [], [], [], []
    for number in range(rounds):
        drumline("train", str(path), f"run.name=run-{number}")
        steps = read_metrics(directory, f"run-{number}")[NUM_SINGLE_STEPS:]
        step_seconds = sum(step["step_seconds"] for step in steps)
        used.append(sum(step["num_tokens"] for step in steps) / step_seconds)
        waits.append(sum(step["data_wait_seconds"] for step in steps) / step_seconds)
        delivered.append(deliver())
        again.append(deliver())
    control = statistics.median(paired(again, delivered))
    note = f"{statistics.median(delivered):,.0f} over {statistics.median(used):,.0f} tokens/s"
    return [
        at_least(11, f"pipeline alone over training, {shape}, tokens/s", 50.0, paired(delivered, used), control, note),
        at_most(11, f"wait for data over step time, {shape}", 0.01, waits),
    ]


def _pipeline(path: Path) -> Callable[[], float]:
    """A function that reads batches, and returns how many tokens a second came."""
    import tensorflow as tf

    from trainer.config import plan_batches
    from trainer.config_io import load_config
    from trainer.data.corpus import open_corpus
    from trainer.data.pipeline import training_batches
    from trainer.distribution import connect

    config = load_config(path, [])
    corpus = open_corpus(config)
    distribution = connect(config.distribution)
    plan = plan_batches(config.train, distribution.num_replicas)
    batches = distribution.iterate(training_batches(corpus.train, corpus.order, plan, 0, distribution.replicas))

    @tf.function(autograph=False)
    def read(num_batches: tf.Tensor) -> tf.Tensor:
        def body(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            inputs = next(batches)["inputs"]
            return index + 1, total + tf.size(inputs)

        return tf.while_loop(lambda index, _: index < num_batches, body, (0, 0), parallel_iterations=1)[1]

    def deliver() -> float:
        began = time.perf_counter()
        num_tokens = int(read(tf.constant(NUM_BATCHES)))
        return num_tokens / (time.perf_counter() - began)

    return deliver


if __name__ == "__main__":
    main()
