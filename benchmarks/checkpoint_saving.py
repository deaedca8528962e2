"""Measures what saving costs a run: in the background, in the foreground, and not at all, in turn in one process.

    python benchmarks/checkpoint_saving.py [--rounds 7] [--saves 8] [--steps-between 4] [--shape 6,384,6,64,4]

A leg is so many steps of training with a save before every few of them, on Drumline's own step, snapshot and saver; it ends
when the last save is whole. The leg without saves comes twice: the difference of the two is what the measurement itself is
worth. Printed are medians of the rounds, and two ratios:

  blocked / copy        seconds that training stands still for a save, over those of copying the state once in memory
  lost, background / foreground    what the saves add to a leg, which is the time in which no tokens are trained on
"""

from __future__ import annotations

import argparse
import functools
import os
import pydoc_data.topics
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LEGS = ("no saves", "background", "foreground", "no saves again")


@dataclass
class Measured:
    """Seconds, an entry a round; of `blocked` an entry a save."""

    num_parameters: int
    state_bytes: int
    copies: list[float] = field(default_factory=list)
    legs: dict[str, list[float]] = field(default_factory=lambda: {leg: [] for leg in LEGS})
    blocked: dict[str, list[float]] = field(default_factory=lambda: {leg: [] for leg in LEGS})

    @property
    def blocked_over_copy(self) -> float:
        return statistics.median(self.blocked["background"]) / statistics.median(self.copies)

    def lost(self, leg: str) -> float:
        """The median over the rounds of what a leg took longer than the mean of those without saves."""
        without = [statistics.mean(pair) for pair in zip(self.legs["no saves"], self.legs["no saves again"], strict=True)]
        return statistics.median(a - b for a, b in zip(self.legs[leg], without, strict=True))

    @property
    def control(self) -> float:
        """By how much two legs without saves differ: the median of the absolute differences."""
        pairs = zip(self.legs["no saves"], self.legs["no saves again"], strict=True)
        return statistics.median(abs(a - b) for a, b in pairs)

    @property
    def lost_ratio(self) -> float:
        return self.lost("background") / self.lost("foreground")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--saves", type=int, default=8, help="of a leg")
    parser.add_argument("--steps-between", type=int, default=4)
    parser.add_argument("--shape", default="6,384,6,64,4", help="layers, width, heads, length, batch")
    arguments = parser.parse_args()
    shape = [int(number) for number in arguments.shape.split(",")]
    measured = measure(arguments.rounds, arguments.saves, arguments.steps_between, shape)

    saves = arguments.saves
    print(f"{measured.num_parameters / 1e6:.1f} M parameters, a state of {measured.state_bytes / 1e6:.0f} MB in float32")
    print(f"medians of {arguments.rounds} rounds; a leg: {saves} times a save and {arguments.steps_between} steps")
    for leg in LEGS:
        print(f"  {leg:15} {statistics.median(measured.legs[leg]):8.3f} s a leg")
    print(f"  a copy of the state in memory        {1e3 * statistics.median(measured.copies):8.1f} ms")
    for leg in ("background", "foreground"):
        seconds = [1e3 * each for each in measured.blocked[leg]]
        print(
            f"  blocked for a save, {leg:12} {statistics.median(seconds):12.1f} ms  ({min(seconds):.0f} ... {max(seconds):.0f})"
        )
    for leg in ("background", "foreground"):
        print(f"  lost for a save, {leg:12} {1e3 * measured.lost(leg) / saves:15.1f} ms")
    print(f"  two legs without saves differ by     {1e3 * measured.control / saves:8.1f} ms a save (control)")
    print(f"  blocked / copy                       {measured.blocked_over_copy:8.2f}")
    print(f"  lost, background / foreground        {measured.lost_ratio:8.2f}")


def measure(rounds: int, saves: int, steps_between: int, shape: list[int]) -> Measured:
    """Trains, in turn, with each way to save; in a temporary folder, which should be on a real disk (TMPDIR)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare_store(directory, shape)
        run_leg, measured, copy_state = _set_up(directory, shape, saves, steps_between)
        for leg in LEGS:
            run_leg(leg)  # compiles; makes the folders
        measured.legs = {leg: [] for leg in LEGS}
        measured.blocked = {leg: [] for leg in LEGS}
        for number in range(rounds):
            measured.copies.append(copy_state())
            for leg in LEGS if number % 2 == 0 else reversed(LEGS):
                run_leg(leg)
    return measured


def prepare_store(directory: Path, shape: list[int]) -> None:
    from trainer.data.prepare import prepare

    topics = pydoc_data.topics.topics
    (directory / "text.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)))
    prepare(_config(directory, shape, "background"), num_processes=1)


def _config(directory: Path, shape: list[int], leg: str):  # type: ignore[no-untyped-def]
    from trainer.config import Config

    num_layers, width, num_heads, length, batch = shape
    return Config.model_validate(
        {
            "run": {"name": leg.replace(" ", "-"), "directory": str(directory / "runs")},
            "data": {
                "store": str(directory / "store"),
                "train": [{"path": str(directory / "text.txt")}],
                "sequence_length": length,
                "tokenizer": {"kind": "character"},
            },
            "model": {"num_layers": num_layers, "num_heads": num_heads, "width": width},
            "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
            "train": {"steps": 1_000_000, "global_batch_size": batch},
            "distribution": {"backend": "single"},
            "checkpoint": {"every": 1, "keep_last": 1, "keep_best": 0, "background": leg != "foreground"},
        }
    )


def _set_up(
    directory: Path, shape: list[int], saves: int, steps_between: int
) -> tuple[Callable[[str], None], Measured, Callable[[], float]]:
    """What runs a leg and notes what it took, the notes, and what copies the state and tells the seconds."""
    import numpy as np
    import tensorflow as tf

    from trainer.config import plan_batches
    from trainer.data.corpus import open_corpus
    from trainer.data.pipeline import training_batches
    from trainer.distribution import connect
    from trainer.lanes import choose_num_lanes
    from trainer.position import GraphPosition
    from trainer.progress import Progress
    from trainer.resume import saving_context, snapshot
    from trainer.run_directory import RunDirectory
    from trainer.saver import CheckpointSaver
    from trainer.step import choose_compiler, compile_training
    from trainer.training_state import create_state

    configs = {leg: _config(directory, shape, leg) for leg in LEGS}
    config = configs["background"]
    corpus = open_corpus(config)
    sizes = corpus.manifest.sizes
    distribution = connect(config.distribution, functools.partial(choose_num_lanes, config, sizes))
    plan = plan_batches(config.train, distribution.num_replicas)
    state = create_state(config, sizes)
    train_steps = compile_training(config, state, distribution, plan, choose_compiler(config)[0], GraphPosition())
    batches = distribution.iterate(training_batches(corpus.train, corpus.order, plan, 0, distribution.replicas))
    step = 0

    arrays = [np.asarray(variable.numpy()) for variable in state.variables]
    num_parameters = sum(int(np.prod(weight.shape)) for weight in state.weights.values())
    measured = Measured(num_parameters, sum(array.nbytes for array in arrays))

    def copy_state() -> float:
        began = time.perf_counter()
        copies = [np.copy(array) for array in arrays]
        seconds = time.perf_counter() - began
        del copies
        return seconds

    def run_leg(leg: str) -> None:
        nonlocal step
        saver = CheckpointSaver(RunDirectory.of(configs[leg]).checkpoints, configs[leg].checkpoint)
        context = saving_context(configs[leg], distribution)
        began = time.perf_counter()
        for _ in range(saves):
            if not leg.startswith("no saves"):
                asked = time.perf_counter()
                saver.save(snapshot(state, configs[leg], corpus, Progress(step=step)), context)
                measured.blocked[leg].append(time.perf_counter() - asked)
            train_steps(batches, tf.constant(step, tf.int64), tf.constant(steps_between))["loss"].numpy()
            step += steps_between
        saver.close()
        measured.legs[leg].append(time.perf_counter() - began)
        if saver.failures:
            raise SystemExit("a save failed: see the warning above")

    return run_leg, measured, copy_state


if __name__ == "__main__":
    main()
