"""Measures what a loss in chunks and blocks that are computed again save in memory, and what they cost in time.

    python benchmarks/memory.py [--rounds 5] [--rows FILE] [--precision float32] [--part loss|recompute] [--small]

Each contestant is a process of its own that trains on Drumline's own inner loop and stays alive; rounds go through all of
them in turn, so that a drift of the machine touches all alike. The plain one takes part twice: the ratio of the two is
what the measurement itself is worth. Peaks are of resident bytes, after the first steps (so without what compiling took):

  loss        less those of the same training with a loss that has no logits: what is left are the logits and what goes
              with them. Gradients of both losses are compared in one process, by the norm of each weight's
  recompute   as they are, TensorFlow's own bytes included; the note has them less those of the tiniest shape

The contestants are alive together: it wants 16 GB of free memory. `--small` is a trial of the program itself: shapes so
small that its figures say nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rows import Row, at_most, paired, report

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
    chunk: int | str | None = "auto"
    recompute: str = "none"
    has_logits: bool = True


@dataclass(frozen=True)
class Part:
    """Contestants by name; `plain` takes part twice, `saving` is what is measured, `floor` what both would take without it.

    number, memory_bar, time_bar: of the row in RESULTS.md
    is_extra:                     whether the memory's ratio is of what lies above the floor
    """

    number: int
    contestants: dict[str, Contestant]
    plain: str
    saving: str
    floor: str
    is_extra: bool
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
    parser.add_argument("--rows", type=Path, help="the file that the figures are added to")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        contestant = Contestant(**json.loads(arguments.contestant))
        if arguments.gradients:
            print(_gradient_difference(contestant, arguments.precision))
        else:
            _answer_rounds(_training(contestant, arguments.precision))
        return
    for name, part in parts(small=arguments.small).items():
        if arguments.part in (None, name):
            found = _compare(part, arguments.rounds, arguments.precision)
            _print(name, part, found, arguments.precision)
            rows = _rows(part, found)
            if name == "loss":
                rows.append(_gradient_row(part.contestants[part.saving], arguments.precision))
            report(rows, arguments.rows)


def parts(*, small: bool) -> dict[str, Part]:
    """The two comparisons. The first shape's logits take 1.2 GB, so that its loss is in chunks as it comes."""
    wide = "2,32,2,32,2,509" if small else "6,384,6,512,12,50257"
    deep = "3,32,2,64,2,101" if small else "12,384,6,1024,4,8192"
    loss = {
        "all logits": Contestant(wide, chunk=None),
        "chunks": Contestant(wide, chunk=16 if small else "auto"),
        "all logits again": Contestant(wide, chunk=None),
        "no logits": Contestant(wide, chunk=None, has_logits=False),
    }
    recompute = {
        "none": Contestant(deep),
        "blocks": Contestant(deep, recompute="blocks"),
        "none again": Contestant(deep),
        "tiniest": Contestant("1,8,1,2,1,3"),
    }
    return {
        "loss": Part(7, loss, "all logits", "chunks", "no logits", is_extra=True, memory_bar=0.25, time_bar=1.03),
        "recompute": Part(8, recompute, "none", "blocks", "tiniest", is_extra=False, memory_bar=0.45, time_bar=1.35),
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


def _rows(part: Part, found: dict[str, list[Round]]) -> list[Row]:
    """Memory and time of what saves over the plain one."""
    floors = [answer.peak_bytes for answer in found[part.floor]]

    def above_floor(name: str) -> list[float]:
        return [answer.peak_bytes - floor for answer, floor in zip(found[name], floors, strict=True)]

    def peaks(name: str) -> list[float]:
        return above_floor(name) if part.is_extra else [float(answer.peak_bytes) for answer in found[name]]

    def seconds(name: str) -> list[float]:
        return [answer.seconds for answer in found[name]]

    again, shape = f"{part.plain} again", part.contestants[part.plain].shape
    note = f"shape {shape}; {_median_megabytes(peaks(part.saving))} over {_median_megabytes(peaks(part.plain))}"
    if not part.is_extra:
        less = statistics.median(paired(above_floor(part.saving), above_floor(part.plain)))
        note += f"; {less:.3f} less the {_median_megabytes([*map(float, floors)])} of the tiniest training"
    rows = []
    for what, of, bar, told in (
        ("extra memory" if part.is_extra else "peak memory", peaks, part.memory_bar, note),
        ("step time", seconds, part.time_bar, f"shape {shape}"),
    ):
        control = statistics.median(paired(of(again), of(part.plain)))
        label = f"{what}, {part.saving} over {part.plain}"
        rows.append(at_most(part.number, label, bar, paired(of(part.saving), of(part.plain)), control, told))
    return rows


def _median_megabytes(amounts: list[float]) -> str:
    return f"{statistics.median(amounts) / 1e6:,.0f} MB"


def _gradient_row(contestant: Contestant, precision: str) -> Row:
    command = [*_command(contestant, precision), "--gradients"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment()).stdout
    what = "largest difference of a weight's gradient, in chunks and of all logits, over its norm"
    difference = float(printed.splitlines()[-1])
    return Row(7, what, difference, 1e-6, True, note=f"{difference:.2e}; shape {contestant.shape}")


def _start(contestant: Contestant, precision: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _command(contestant, precision),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(),
    )


def _command(contestant: Contestant, precision: str) -> list[str]:
    return [sys.executable, __file__, "--contestant", json.dumps(asdict(contestant)), "--precision", precision]


def _environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}


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
    from trainer.verbs.start import import_tensorflow

    import_tensorflow()  # as `train` does
    import numpy as np
    import tensorflow as tf

    from trainer.config import Config, plan_batches
    from trainer.distribution import connect
    from trainer.heap import compiled_by_first_call
    from trainer.lanes import choose_num_lanes
    from trainer.position import GraphPosition
    from trainer.sizes import Sizes
    from trainer.step import choose_compiler, compile_training
    from trainer.training_state import create_state

    shape = Shape.read(contestant.shape)
    if not contestant.has_logits:
        _leave_out_the_logits()
    config = Config.model_validate(_sections(shape, contestant, precision))
    sizes = Sizes(shape.vocabulary)
    distribution = connect(config.distribution, functools.partial(choose_num_lanes, config, sizes))
    plan, state = plan_batches(config.train, distribution.num_replicas), create_state(config, sizes)
    compiler, _ = choose_compiler(config)
    train_steps = compile_training(config, state, distribution, plan, compiler, GraphPosition())
    train_steps = compiled_by_first_call(train_steps)  # as `train` does
    tokens = _tokens(shape)[None]
    element = {
        "inputs": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "sample_ids": np.arange(shape.batch)[None],
        "first_row": np.zeros(1, np.int64),
    }
    batches = distribution.iterate(tf.data.Dataset.from_tensors(element).repeat().prefetch(2))
    return lambda count: train_steps(batches, tf.constant(0, tf.int64), tf.constant(count))["loss"].numpy()


def _tokens(shape: Shape) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, shape.vocabulary, (shape.batch, shape.length + 1), np.int32)


def _gradient_difference(contestant: Contestant, precision: str) -> float:
    """The largest norm of a weight's gradient in chunks less that of all logits, over the norm of the latter."""
    import numpy as np
    import tensorflow as tf

    from trainer.config import Config
    from trainer.models.apart import compiled_apart
    from trainer.models.blocks import DropoutKey
    from trainer.sizes import Sizes
    from trainer.step import choose_compiler
    from trainer.tasks.choice import choose_task
    from trainer.training_state import create_state

    shape, gradients = Shape.read(contestant.shape), []
    for each in (contestant, replace(contestant, chunk=None)):
        config = Config.model_validate(_sections(shape, each, precision))
        task, weights = choose_task(config), create_state(config, Sizes(shape.vocabulary)).weights
        compiler, _ = choose_compiler(config)

        @tf.function(jit_compile=compiler == "xla", autograph=False)
        def differentiate(values: Any, features: Any, task: Any = task, compiler: str = compiler) -> Any:
            with compiled_apart(compiler == "elementwise"), tf.GradientTape() as tape:
                tape.watch(values)
                key = DropoutKey(tf.constant([0, 0], tf.int64), tf.constant(0, tf.int64))
                computed = {name: tf.cast(value, precision) for name, value in values.items()}
                loss_sum, _ = task.loss_sums(computed, features, key)
            return tape.gradient(loss_sum, values)

        tokens = _tokens(shape)
        values = {name: tf.convert_to_tensor(value) for name, value in weights.items()}
        features = {"inputs": tf.constant(tokens[:, :-1]), "targets": tf.constant(tokens[:, 1:])}
        gradients.append({name: value.numpy() for name, value in differentiate(values, features).items()})
    chunks, whole = gradients
    return max(float(np.linalg.norm(chunks[name] - value) / np.linalg.norm(value)) for name, value in whole.items())


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

    def squares(config: Any, output: Any, targets: Any, *others: Any) -> tuple[Any, Any]:
        parts = (tf.reduce_sum(tf.square(tf.cast(each, tf.float32))) for each in (output.vectors_BTD, output.table_VD[:1]))
        return tf.add_n(list(parts)), tf.reduce_sum(tf.cast(targets >= 0, tf.float32))

    language_modeling.output_loss_sums = squares


if __name__ == "__main__":
    main()
