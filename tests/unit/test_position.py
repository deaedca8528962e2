"""Where a call of TensorFlow stands is told from outside, also where it is stuck: the watchdog names ranks by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.training import training_config
from trainer import step as updates
from trainer.config import plan_batches
from trainer.distribution import Distribution, connect
from trainer.position import GraphPosition
from trainer.sizes import Sizes
from trainer.step import Compiler, compile_training
from trainer.tasks.language_modeling import LanguageModeling
from trainer.training_state import create_state

pytestmark = pytest.mark.usefixtures("tensorflow")

STUCK_STEP = 2


class Barrier:
    """Passes tensors on, and holds up those of the second time until it is opened."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._num_passed = 0

    def open(self) -> None:
        self._opened.set()

    def passed(self, tensor: tf.Tensor) -> tf.Tensor:
        def wait(value: np.ndarray) -> np.ndarray:
            self._num_passed += 1
            assert self._num_passed != STUCK_STEP or self._opened.wait(60.0)
            return value

        return tf.ensure_shape(tf.numpy_function(wait, [tensor], tensor.dtype), tensor.shape)


def stuck_batch(barrier: Barrier, monkeypatch: pytest.MonkeyPatch, batches: tf.data.Dataset) -> tf.data.Dataset:
    return batches.map(lambda batch: batch | {"inputs": barrier.passed(batch["inputs"])})


def stuck_computation(barrier: Barrier, monkeypatch: pytest.MonkeyPatch, batches: tf.data.Dataset) -> tf.data.Dataset:
    loss_sums = LanguageModeling.loss_sums

    def slow_loss_sums(self: Any, weights: Any, features: Any, *others: Any) -> Any:
        return loss_sums(self, weights, {**features, "inputs": barrier.passed(features["inputs"])}, *others)

    monkeypatch.setattr(LanguageModeling, "loss_sums", slow_loss_sums)
    return batches


def stuck_reduction(barrier: Barrier, monkeypatch: pytest.MonkeyPatch, batches: tf.data.Dataset) -> tf.data.Dataset:
    reduce = updates._reduce

    def slow_reduce(config: Any, distribution: Distribution, sums: list[tf.Tensor], wire_scale: float) -> list[tf.Tensor]:
        first, *others = reduce(config, distribution, sums, wire_scale)
        return [barrier.passed(first), *others]

    monkeypatch.setattr(updates, "_reduce", slow_reduce)
    return batches


@pytest.mark.parametrize(
    ("stick", "compiler", "stage"),
    [
        (stuck_batch, "elementwise", "waiting for its batch"),
        (stuck_batch, "xla", "waiting for its batch"),
        (stuck_computation, "elementwise", "computing"),  # XLA has no call of Python
        (stuck_reduction, "elementwise", "waiting for the other ranks"),
        (stuck_reduction, "xla", "waiting for the other ranks"),
    ],
)
def test_a_stuck_update_is_found_at_the_stage_at_which_it_is_stuck(
    stick: Callable[..., tf.data.Dataset], compiler: Compiler, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training_config(
        Path("unused"),
        "stuck",
        model={"num_layers": 1, "width": 16},
        data={"sequence_length": 8},
        train={"global_batch_size": 4},
    )
    distribution, position, barrier = connect(config.distribution), GraphPosition(), Barrier()
    plan = plan_batches(config.train, 1)
    state = create_state(config, Sizes(13))
    rows = np.zeros((1, 4, 8), np.int32)
    batch = {"inputs": rows, "targets": rows, "sample_ids": np.zeros((1, 4), np.int64), "first_row": np.zeros(1, np.int64)}
    batches = stick(barrier, monkeypatch, tf.data.Dataset.from_tensors(batch).repeat())
    train_steps = compile_training(config, state, distribution, plan, compiler, position)
    thread = threading.Thread(
        target=train_steps, args=(distribution.iterate(batches), tf.constant(0, tf.int64), tf.constant(3)), daemon=True
    )
    thread.start()
    try:
        wait_until(lambda: position.read()[0] == STUCK_STEP)
        time.sleep(0.3)
        assert position.read() == (STUCK_STEP, stage)
    finally:
        barrier.open()
        thread.join(60.0)
    assert position.read() == (3, "updating")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
