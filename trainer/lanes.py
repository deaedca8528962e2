"""Lanes: on a CPU each core computes rows of its own of a micro-batch, from their loss to their gradients.

Where all cores share each operation, they wait for one another at its end, a thousand times a step. With lanes an operation
takes one core, and the cores wait once, when the gradients of their rows are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import tensorflow as tf

from trainer.check import estimate_memory
from trainer.config import Config, plan_batches
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters
from trainer.tasks.task import Features

MOST_LANES = 8  # their gradients are added up one after another
LARGEST_SHARE = 2 / 3  # of the memory of the activations that the gradients of all lanes may take

Result = TypeVar("Result")

_num_lanes_being_built = ContextVar("num_lanes_being_built", default=1)


def choose_num_lanes(config: Config, sizes: Sizes, num_replicas: int, num_cores: int) -> int:
    """How many lanes a replica has that computes on so many cores: one a core, where the rows of a micro-batch can be divided
    so and there is memory for it; otherwise one, for which all cores share each operation."""
    plan = plan_batches(config.train, num_replicas)
    if num_cores > MOST_LANES or plan.rows_per_micro_batch % num_cores:
        return 1
    # XLA divides what it compiles itself; and texts are written by functions without lanes, which would have but one core.
    if config.train.compile == "xla" or config.evaluation.generate:
        return 1
    weights = run_parameters(config, sizes)
    gradients = 4 * sum(each.num_elements for each in weights.values() if each.is_trainable)
    # When the gradients of all lanes are there, activations are gone. But that of a tied output comes while they are not.
    activations = estimate_memory(config, plan, weights, sizes.vocabulary_size).activations
    return num_cores if num_cores * gradients <= LARGEST_SHARE * activations else 1


def in_lanes(
    compute: Callable[[Features, tf.Tensor | int], Result], features: Features, first_row: tf.Tensor | int, num_lanes: int
) -> list[Result]:
    """What `compute` returns for each lane's rows of `features` [M, ...], M a multiple of `num_lanes`, and the row of the
    global batch at which they begin, from `first_row` on. Nothing has one lane wait for another."""
    num_rows = next(iter(features.values())).shape[0] // num_lanes
    token = _num_lanes_being_built.set(num_lanes)
    try:
        return [
            compute({name: value[first : first + num_rows] for name, value in features.items()}, first_row + first)
            for first in range(0, num_lanes * num_rows, num_rows)
        ]
    finally:
        _num_lanes_being_built.reset(token)


def num_lanes_being_built() -> int:
    """How many lanes will be computed at once, of which the graph of one is being built: what must not be there of all rows
    at once must not be of all lanes either."""
    return _num_lanes_being_built.get()
