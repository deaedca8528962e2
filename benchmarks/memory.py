"""Measures what a loss in chunks and blocks that are computed again save in memory, and what they cost in time.

    python benchmarks/memory.py [--rounds 5] [--precision float32] [--part loss|recompute] [--small]

Each contestant is a process of its own that trains on Drumline's own inner loop and stays alive; rounds go through all of
them in turn, so that a drift of the machine touches all alike. The first contestant takes part twice: the ratio of the two is
what the measurement itself is worth. Peaks are of resident bytes, after the first steps (so without what compiling took);
from each is taken what stays without what is measured:

  loss        the same training with a loss that has no logits: what is left are the logits and what goes with them
  recompute   training of the tiniest shape: what is left are weights, gradients, moments and activations

Printed are the medians of the rounds' ratios, beside the bars of both. `--small` is a trial of the program itself: shapes so
small that its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP_STEPS, STEPS_PER_ROUND = 2, 2


@dataclass(frozen=True)
class Shape:
    """What is computed, as `step_time.py` writes it: layers, width, heads, length, batch, vocabulary."""

    num_layers: int
    width: int
    num_heads: int
    length: int
    batch: int
    vocabulary: int

    @classmethod
    def read(cls, text: str) -> Shape:
        return cls(*(int(number) for number in text.split(",")))


@dataclass(frozen=True)
class Contestant:
    """A training, by its shape and by what it does to save memory."""

    shape: str
    chunk: int | str | None = None
    recompute: str = "none"
    has_logits: bool = True


@dataclass(frozen=True)
class Part:
    """Contestants by name; `plain` takes part twice, `saving` is what is measured, `floor` what is taken off of both."""

    contestants: dict[str, Contestant]
    plain: str
    saving: str
    floor: str
    memory_bar: float
    time_bar: float


@dataclass(frozen=True)
class Round:
    """What one contestant answers in one round."""

    seconds: float  # a step
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--part", choices=("loss", "recompute"), help="one of the two alone")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        _answer_rounds(_training(Contestant(**json.loads(arguments.contestant)), arguments.precision))
        return
    for name, part in parts(small=arguments.small).items():
        if arguments.part in (None, name):
            _print(name, part, _compare(part, arguments.rounds, arguments.precision), arguments.precision)


def parts(*, small: bool) -> dict[str, Part]:
    """The two comparisons. The first shape's logits take 1.6 GB, so that its loss is in chunks as it comes."""
    wide = "2,32,2,32,2,509" if small else "6,384,6,512,16,50257"
    deep = "3,32,2,64,2,101" if small else "12,384,6,1024,4,8192"
    loss = {
        "all logits": Contestant(wide),
        "chunks": Contestant(wide, chunk=16 if small else "auto"),
        "all logits again": Contestant(wide),
        "no logits": Contestant(wide, has_logits=False),
    }
    recompute = {
        "none": Contestant(deep),
        "blocks": Contestant(deep, recompute="blocks"),
        "none again": Contestant(deep),
        "tiniest": Contestant("1,8,1,2,1,3"),
    }
    return {
        "loss": Part(loss, "all logits", "chunks", "no logits", memory_bar=0.25, time_bar=1.03),
        "recompute": Part(recompute, "none", "blocks", "tiniest", memory_bar=0.45, time_bar=1.35),
    }


def _compare(part: Part, rounds: int, precision: str) -> dict[str, list[Round]]:
    """Starts the contestants one after another, lets them warm up, and has them step in turn."""
    processes = {}
    for name, contestant in part.contestants.items():
        processes[name] = _start(contestant, precision)
        _round(processes[name], name)
    found: dict[str, list[Round]] = {name: [] for name in processes}
    for number in range(rounds):
        for name in processes if number % 2 == 0 else reversed(processes):
            found[name].append(_round(processes[name], name))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return found


def _print(name: str, part: Part, found: dict[str, list[Round]], precision: str) -> None:
    num_rounds = len(found[part.plain])
    print(f"{name}: shape {part.contestants[part.plain].shape}, {precision}, {num_rounds} rounds of {STEPS_PER_ROUND} steps")
    print(f"  {'':18}{'ms a step':>10}{'peak MB':>10}{'less ' + part.floor + ', MB':>22}")
    peaks = {each: statistics.median(answer.peak_bytes for answer in answers) for each, answers in found.items()}
    for each, answers in found.items():
        seconds = statistics.median(answer.seconds for answer in answers)
        print(f"  {each:18}{1e3 * seconds:10.1f}{peaks[each] / 1e6:10.0f}{(peaks[each] - peaks[part.floor]) / 1e6:22.0f}")

    def row(label: str, above: str, of: Callable[[str, int], float], bar: float | None) -> None:
        ratios = [of(above, number) / of(part.plain, number) for number in range(num_rounds)]
        told = "(control)" if bar is None else f"bar: at most {bar:.2f}"
        print(f"  {label:44} {statistics.median(ratios):.3f}  ({min(ratios):.3f} ... {max(ratios):.3f})  {told}")

    def extra(each: str, number: int) -> float:
        return found[each][number].peak_bytes - found[part.floor][number].peak_bytes

    def seconds(each: str, number: int) -> float:
        return found[each][number].seconds

    for kind, of, bar in (("memory", extra, part.memory_bar), ("time", seconds, part.time_bar)):
        row(f"{kind}, {part.saving} / {part.plain}", part.saving, of, bar)
        row(f"{kind}, {part.plain} again / {part.plain}", f"{part.plain} again", of, None)


def _start(contestant: Contestant, precision: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--contestant", json.dumps(contestant.__dict__), "--precision", precision]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def _round(process: subprocess.Popen[str], name: str) -> Round:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"{name} ended with exit code {process.wait()}; run this with --contestant {process.args[3]!r}")  # type: ignore[index]
    return Round(**json.loads(answer))


def _answer_rounds(take_steps: Callable[[int], object]) -> None:
    take_steps(WARM_UP_STEPS)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now (proc(5))
        began = time.perf_counter()
        take_steps(STEPS_PER_ROUND)
        seconds = (time.perf_counter() - began) / STEPS_PER_ROUND
        print(json.dumps({"seconds": seconds, "peak_bytes": _peak_bytes()}), flush=True)


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def _training(contestant: Contestant, precision: str) -> Callable[[int], object]:
    """Drumline's own inner loop, fed by a `tf.data` set of one batch."""
    import numpy as np
    import tensorflow as tf

    from trainer.config import Config, plan_batches
    from trainer.distribution import connect
    from trainer.position import GraphPosition
    from trainer.sizes import Sizes
    from trainer.step import choose_compiler, compile_training, create_state

    shape = Shape.read(contestant.shape)
    if not contestant.has_logits:
        _leave_out_the_logits()
    config = Config.model_validate(_sections(shape, contestant, precision))
    distribution = connect(config.distribution)
    plan, state = plan_batches(config.train, distribution.num_replicas), create_state(config, Sizes(shape.vocabulary))
    train_steps = compile_training(config, state, distribution, plan, choose_compiler(config)[0], GraphPosition())
    tokens = np.random.default_rng(0).integers(0, shape.vocabulary, (1, shape.batch, shape.length + 1), np.int32)
    element = {
        "inputs": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "sample_ids": np.arange(shape.batch)[None],
        "first_row": np.zeros(1, np.int64),
    }
    batches = distribution.iterate(tf.data.Dataset.from_tensors(element).repeat().prefetch(2))
    return lambda count: train_steps(batches, tf.constant(0, tf.int64), tf.constant(count))["loss"].numpy()


def _sections(shape: Shape, contestant: Contestant, precision: str) -> dict[str, Any]:
    model = {"num_layers": shape.num_layers, "num_heads": shape.num_heads, "width": shape.width}
    return {
        "run": {"name": "memory"},
        "data": {
            "store": "none",
            "train": [{"path": "none"}],
            "sequence_length": shape.length,
            "tokenizer": {"kind": "character"},
        },
        "model": {**model, "recompute": contestant.recompute},
        "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
        "train": {
            "steps": 1_000_000,
            "global_batch_size": shape.batch,
            "precision": precision,
            "loss_chunk_tokens": contestant.chunk,
        },
        "distribution": {"backend": "single"},
    }


def _leave_out_the_logits() -> None:
    """Has the loss be squares of what scores are made of: vectors, and the table's first row (its gradient is of full size)."""
    import tensorflow as tf

    from trainer.tasks import language_modeling

    def squares(train: Any, output: Any, targets: Any, *others: Any) -> tuple[Any, Any]:
        parts = (tf.reduce_sum(tf.square(tf.cast(each, tf.float32))) for each in (output.vectors_BTD, output.table_VD[:1]))
        return tf.add_n(list(parts)), tf.reduce_sum(tf.cast(targets >= 0, tf.float32))

    language_modeling.output_loss_sums = squares


if __name__ == "__main__":
    main()
