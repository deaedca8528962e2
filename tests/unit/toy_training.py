"""A toy of a model trained on random tokens, without a store: what the tests of updates share.

Axes: S steps, G rows of the global batch, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.training import training_config
from trainer.config import BatchPlan, Config, plan_batches
from trainer.distribution import Distribution, connect
from trainer.position import GraphPosition
from trainer.sizes import Sizes
from trainer.step import Compiler, compile_training
from trainer.training_state import TrainingState, create_state

VOCABULARY_SIZE, GLOBAL_BATCH_SIZE, NUM_STEPS = 29, 8, 6


def config(**sections: Mapping[str, Any]) -> Config:
    values: dict[str, dict[str, Any]] = {
        "model": {"num_layers": 1, "num_heads": 2, "width": 16},
        "data": {"sequence_length": 10},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "minimum_learning_rate": 0.0},
        "train": {"steps": NUM_STEPS, "global_batch_size": GLOBAL_BATCH_SIZE},
    }
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    return training_config(Path("unused"), "step", **values)


TWO_REPLICAS = {"backend": "mirrored", "num_replicas": 2}


@dataclass(frozen=True)
class Training:
    """What training some steps leaves behind."""

    state: TrainingState
    distribution: Distribution
    plan: BatchPlan
    history: dict[str, np.ndarray]

    @property
    def losses(self) -> np.ndarray:
        return self.history["loss"]

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: weight.numpy() for name, weight in self.state.weights.items()}


def batches_SGT(unequal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of all steps. With `unequal` rows have from 0 to 10 targets, and the last step has none."""
    generator = np.random.default_rng(3)
    tokens = generator.integers(0, VOCABULARY_SIZE, (NUM_STEPS, GLOBAL_BATCH_SIZE, 11), np.int32)
    inputs, targets = tokens[..., :-1], tokens[..., 1:].copy()
    if unequal:
        lengths = generator.integers(0, 11, (NUM_STEPS, GLOBAL_BATCH_SIZE, 1))
        lengths[0, :4] = 0  # nothing at all on the first of two replicas
        lengths[-1] = 0
        targets[np.arange(10) >= lengths] = -1
    return inputs, targets


def dataset(plan: BatchPlan, replicas: range, unequal: bool, first_step: int = 0) -> tf.data.Dataset:
    """Elements as `trainer.data.pipeline` makes them."""
    inputs, targets = batches_SGT(unequal)
    ids = np.arange(inputs[..., 0].size).reshape(NUM_STEPS, GLOBAL_BATCH_SIZE)
    elements: dict[str, list[np.ndarray]] = {"inputs": [], "targets": [], "sample_ids": [], "first_row": []}
    for step in range(first_step, NUM_STEPS):
        for replica in replicas:
            firsts = list(plan.first_rows(replica))
            rows = [slice(first, first + plan.rows_per_micro_batch) for first in firsts]
            elements["inputs"].append(np.stack([inputs[step, each] for each in rows]))
            elements["targets"].append(np.stack([targets[step, each] for each in rows]))
            elements["sample_ids"].append(np.stack([ids[step, each] for each in rows]))
            elements["first_row"].append(np.array(firsts, np.int64))
    return tf.data.Dataset.from_tensor_slices({name: np.stack(values) for name, values in elements.items()})


@contextmanager
def matrices_compiled() -> Iterator[None]:
    """The updates of the toy's matrices are compiled as those of a real model's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.weight_update.LEAST_COMPILED", 100)
        yield


def train(
    settings: Config,
    *,
    calls: tuple[int, ...] = (NUM_STEPS,),
    unequal: bool = False,
    compiler: Compiler = "graph",
    num_lanes: int = 1,
) -> Training:
    """Trains sum(calls) steps, with so many steps in each call. TensorFlow's threads stay what they are."""
    distribution = connect(settings.distribution)
    distribution.num_lanes = num_lanes
    plan = plan_batches(settings.train, distribution.num_replicas)
    with distribution.scope():
        state = create_state(settings, Sizes(VOCABULARY_SIZE))
    train_steps = compile_training(settings, state, distribution, plan, compiler, GraphPosition())
    batches = distribution.iterate(dataset(plan, distribution.replicas, unequal))
    step, parts = 0, []
    for count in calls:
        with matrices_compiled():
            history = train_steps(batches, tf.constant(step, tf.int64), tf.constant(count))
        parts.append({name: value.numpy() for name, value in history.items()})
        step += count
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Training(state, distribution, plan, joined)
