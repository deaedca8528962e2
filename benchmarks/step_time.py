"""Measures a training step of Drumline against a hand-written TensorFlow step of the same model (row 3), and one rank under
each other backend against `single` (row 4); also `train.deterministic`.

    python benchmarks/step_time.py [--rounds 5] [--precision float32] [--shape 6,384,6,256,8,8192]

Each contestant is a process of its own that stays alive; rounds go through all of them in turn, so that a drift of the
machine touches all alike. `single` takes part twice: the ratio of the two is what the measurement itself is worth.
Ratios are of the same round.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rows import Row, at_most, paired, report

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("horovod", "multiworker", "mirrored")
CONTESTANTS = ("hand-written", "single", "single again", *BACKENDS, "deterministic")
STEPS_PER_ROUND = 6
SMALL_SHAPE = "1,32,2,32,2,512"
HAND_WRITTEN_BAR, BACKEND_BAR = 0.95, 1.03


@dataclass(frozen=True)
class Shape:
    """What is computed, as `../shared/peers` writes it: layers, width, heads, length, batch, vocabulary."""

    num_layers: int
    width: int
    num_heads: int
    length: int
    batch: int
    vocabulary: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", default="6,384,6,256,8,8192")
    parser.add_argument("--rows", type=Path, help="adds the rows to this file")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see whether it works")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        shape = Shape(*(int(number) for number in arguments.shape.split(",")))
        _answer_rounds(_contestant(arguments.contestant, shape, arguments.precision))
    else:
        compared = SMALL_SHAPE if arguments.small else arguments.shape
        report(_compare(arguments.rounds, arguments.precision, compared), arguments.rows)


def _compare(rounds: int, precision: str, shape: str) -> list[Row]:
    """Starts the contestants, lets them warm up, and has them step in turn."""
    processes = {name: _start(name, precision, shape) for name in CONTESTANTS}
    for name in CONTESTANTS:
        _round(processes[name], name)
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(rounds):
        for name in CONTESTANTS if number % 2 == 0 else reversed(CONTESTANTS):
            seconds[name].append(_round(processes[name], name))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()

    print(f"shape {shape}, {precision}, medians of {rounds} rounds of {STEPS_PER_ROUND} steps")
    for name in CONTESTANTS:
        print(f"  {name:14} {1e3 * statistics.median(seconds[name]):8.1f} ms a step")
    control = statistics.median(paired(seconds["single"], seconds["single again"]))
    ratios = paired(seconds["deterministic"], seconds["single"])
    print(f"  deterministic / single {statistics.median(ratios):.3f}  ({min(ratios):.3f} ... {max(ratios):.3f})")

    def row(number: int, above: str, below: str, bar: float) -> Row:
        what = f"step of {above} over {below}, {shape} {precision}"
        note = f"{1e3 * statistics.median(seconds[above]):.1f} over {1e3 * statistics.median(seconds[below]):.1f} ms"
        return at_most(number, what, bar, paired(seconds[above], seconds[below]), control, note)

    rows = [row(3, "single", "hand-written", HAND_WRITTEN_BAR)]
    return rows + [row(4, backend, "single", BACKEND_BAR) for backend in BACKENDS]


def _start(name: str, precision: str, shape: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--contestant", name, "--precision", precision, "--shape", shape]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if name == "multiworker":
        worker = {"cluster": {"worker": [f"127.0.0.1:{_free_port()}"]}, "task": {"type": "worker", "index": 0}}
        environment["TF_CONFIG"] = json.dumps(worker)
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _round(process: subprocess.Popen[str], name: str) -> float:
    """Has a contestant take its steps; the seconds of one."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"{name} ended with exit code {process.wait()}; run this with --contestant {name!r} to see why")
    return float(answer)


def _answer_rounds(take_steps: Callable[[int], object]) -> None:
    take_steps(2)
    for _ in sys.stdin:
        began = time.perf_counter()
        take_steps(STEPS_PER_ROUND)
        print((time.perf_counter() - began) / STEPS_PER_ROUND, flush=True)


def _contestant(name: str, shape: Shape, precision: str) -> Callable[[int], object]:
    if name == "hand-written":
        return _hand_written(shape, precision)
    return _drumline(shape, precision, name if name in BACKENDS else "single", deterministic=name == "deterministic")


def _drumline(shape: Shape, precision: str, backend: str, *, deterministic: bool) -> Callable[[int], object]:
    """Drumline's own inner loop, fed by a `tf.data` set of one batch."""
    from trainer.verbs.start import import_tensorflow

    import_tensorflow()  # as `train` does
    import numpy as np
    import tensorflow as tf

    from trainer.config import Config, plan_batches
    from trainer.distribution import connect, make_deterministic
    from trainer.heap import compiled_by_first_call
    from trainer.lanes import choose_num_lanes
    from trainer.position import GraphPosition
    from trainer.sizes import Sizes
    from trainer.step import choose_compiler, compile_training
    from trainer.training_state import create_state

    config = Config.model_validate(
        {
            "run": {"name": "step-time"},
            "data": {
                "store": "none",
                "train": [{"path": "none"}],
                "sequence_length": shape.length,
                "tokenizer": {"kind": "character"},
            },
            "model": {"num_layers": shape.num_layers, "num_heads": shape.num_heads, "width": shape.width},
            "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.01, "beta2": 0.999, "schedule": "constant"},
            "train": {
                "steps": 1_000_000,
                "global_batch_size": shape.batch,
                "precision": precision,
                "deterministic": deterministic,
            },
            "distribution": {"backend": backend},
        }
    )
    if deterministic:
        make_deterministic(config.run.seed)
    sizes = Sizes(shape.vocabulary)
    distribution = connect(config.distribution, functools.partial(choose_num_lanes, config, sizes))
    plan = plan_batches(config.train, distribution.num_replicas)
    with distribution.scope():
        state = create_state(config, sizes)
    train_steps = compiled_by_first_call(
        compile_training(config, state, distribution, plan, choose_compiler(config)[0], GraphPosition())
    )
    tokens = np.random.default_rng(0).integers(0, shape.vocabulary, (1, shape.batch, shape.length + 1), np.int32)
    element = {
        "inputs": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "sample_ids": np.arange(shape.batch)[None],
        "first_row": np.zeros(1, np.int64),
    }
    batches = distribution.iterate(tf.data.Dataset.from_tensors(element).repeat().prefetch(2))
    return lambda count: train_steps(batches, tf.constant(0, tf.int64), tf.constant(count))["loss"].numpy()


def _hand_written(shape: Shape, precision: str) -> Callable[[int], object]:
    """The step that one would write by hand for this one model: no micro-batches, no distribution, nothing to configure."""
    import numpy as np
    import tensorflow as tf

    compute = tf.dtypes.as_dtype(precision)
    width, heads, length, batch, vocabulary = shape.width, shape.num_heads, shape.length, shape.batch, shape.vocabulary
    weights: dict[str, tf.Variable] = {}

    def create(name: str, *sizes: int, value: float | None = None) -> None:
        weights[name] = tf.Variable(tf.random.normal(sizes, stddev=0.02) if value is None else tf.fill(sizes, value))

    create("tokens", vocabulary, width)
    create("positions", length, width)
    norms = [f"{layer}{norm}" for layer in range(shape.num_layers) for norm in ("norm1", "norm2")]
    for name in [*norms, "last"]:
        create(f"{name}.gain", width, value=1.0)
        create(f"{name}.bias", width, value=0.0)
    for layer in range(shape.num_layers):
        for name, rows, columns in (("qkv", 1, 3), ("out", 1, 1), ("up", 1, 4), ("down", 4, 1)):
            create(f"{layer}{name}", rows * width, columns * width)
            create(f"{layer}{name}.bias", columns * width, value=0.0)
    mask = tf.constant(np.triu(np.full((length, length), -1e9, np.float32), 1))

    def norm(x: tf.Tensor, name: str) -> tf.Tensor:
        x = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        x = (x - mean) * tf.math.rsqrt(variance + 1e-5) * weights[f"{name}.gain"] + weights[f"{name}.bias"]
        return tf.cast(x, compute)

    def dense(x: tf.Tensor, name: str) -> tf.Tensor:
        kernel = tf.cast(weights[name], compute)
        y = tf.matmul(tf.reshape(x, (-1, kernel.shape[0])), kernel) + tf.cast(weights[f"{name}.bias"], compute)
        return tf.reshape(y, (batch, length, kernel.shape[1]))

    def split_heads(x: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))

    def forward(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        x = tf.cast(tf.gather(weights["tokens"], inputs) + weights["positions"], compute)
        for layer in range(shape.num_layers):
            query, key, value = map(split_heads, tf.split(dense(norm(x, f"{layer}norm1"), f"{layer}qkv"), 3, -1))
            scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32) * (width // heads) ** -0.5
            mixed = tf.matmul(tf.cast(tf.nn.softmax(scores + mask), compute), value)
            x += dense(tf.reshape(tf.transpose(mixed, (0, 2, 1, 3)), (batch, length, width)), f"{layer}out")
            x += dense(tf.nn.gelu(dense(norm(x, f"{layer}norm2"), f"{layer}up"), approximate=True), f"{layer}down")
        table = tf.cast(weights["tokens"], compute)
        logits = tf.cast(tf.matmul(tf.reshape(norm(x, "last"), (-1, width)), table, transpose_b=True), tf.float32)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(targets, [-1]), logits))

    variables = list(weights.values())
    firsts = [tf.Variable(tf.zeros_like(each)) for each in variables]
    seconds = [tf.Variable(tf.zeros_like(each)) for each in variables]
    count = tf.Variable(0.0)

    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = forward(inputs, targets)
        gradients = [tf.convert_to_tensor(each) for each in tape.gradient(loss, variables)]
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        count.assign_add(1.0)
        correction1, correction2 = 1 - 0.9**count, 1 - 0.999**count
        for weight, first, second, gradient in zip(variables, firsts, seconds, gradients, strict=True):
            first.assign(0.9 * first + 0.1 * gradient)
            second.assign(0.999 * second + 0.001 * gradient * gradient)
            direction = (first / correction1) / (tf.sqrt(second / correction2) + 1e-8)
            weight.assign_sub(3e-4 * (direction + 0.01 * weight))
        return loss

    tokens = tf.random.uniform((batch, length + 1), 0, vocabulary, tf.int32, seed=1)

    def take_steps(number: int) -> None:
        for _ in range(number):
            float(step(tokens[:, :-1], tokens[:, 1:]))

    return take_steps


if __name__ == "__main__":
    main()
