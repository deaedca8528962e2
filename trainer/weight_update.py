"""What an update does to one weight; of an optimizer that is sharded: `sharded_update`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from trainer.config import Config
from trainer.models.parameters import Parameter
from trainer.optimizers.average import move_average
from trainer.optimizers.choice import ELEMENTWISE, update_weight
from trainer.optimizers.scalars import UpdateScalars

LEAST_COMPILED = 1 << 18  # numbers in a weight: what is smaller stays in the caches from one operation to the next


def weight_update(config: Config, *, is_compiled: bool) -> Callable[..., None]:
    """The change of one weight, of what the optimizer keeps of it, and of its average where there is one.

    Where XLA compiles it, that of a large weight is one chain, in place: it takes as long as memory takes to be read and
    written once. Python traces it once for all weights of a kind.
    """

    def change(
        weight: tf.Variable,
        slots: Mapping[str, tf.Variable],
        average: tf.Variable | None,
        gradient: tf.Tensor,
        parameter: Parameter,
        factor: tf.Tensor,
        scalars: UpdateScalars,
        kept: tf.Tensor | None,
    ) -> None:
        update_weight(config.optimizer, parameter, weight, slots, gradient * factor, scalars)
        if average is not None:
            move_average(average, weight, kept)

    if not is_compiled or config.optimizer.kind not in ELEMENTWISE:
        return change
    compiled = tf.function(change, jit_compile=True, autograph=False)

    def change_apart(weight: tf.Variable, *others: Any) -> None:
        (change if weight.shape.num_elements() < LEAST_COMPILED else compiled)(weight, *others)

    return change_apart
