"""The update of one weight by the optimizer that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from trainer.config import OptimizerConfig
from trainer.models.parameters import Parameter
from trainer.optimizers import adafactor, adamw, lamb, lion, muon
from trainer.optimizers.scalars import UpdateScalars

# Those that change each number of a weight by what belongs to that number alone.
ELEMENTWISE = ("adamw", "adam", "lion")


def update_weight(
    optimizer: OptimizerConfig,
    parameter: Parameter,
    weight: tf.Variable,
    slots: Mapping[str, tf.Variable],
    gradient: tf.Tensor,
    scalars: UpdateScalars,
) -> None:
    """In place, all in float32. `slots` are the variables that `slot_shapes` names."""
    rate, kept = scalars.rate, scalars.kept
    if parameter.rate_scale != 1.0:
        rate = rate * parameter.rate_scale
        kept = 1.0 - rate * optimizer.decay
    # Decoupled from the gradient (Loshchilov and Hutter 2019); LAMB's is within the trust ratio.
    if parameter.decays and optimizer.decay and optimizer.kind != "lamb":
        weight.assign(weight * kept)
    match optimizer.kind:
        case "adamw" | "adam":
            adamw.update(optimizer, weight, slots, gradient, rate, scalars)
        case "lamb":
            lamb.update(optimizer, weight, slots, gradient, rate, scalars, is_matrix=parameter.decays)
        case "adafactor":
            adafactor.update(optimizer, weight, slots, gradient, rate, scalars.num_updates)
        case "lion":
            lion.update(optimizer, weight, slots, gradient, rate)
        case "muon" if parameter.is_hidden_matrix:
            muon.update(optimizer, parameter, weight, slots, gradient, rate)
        case "muon":
            adamw.update(optimizer, weight, slots, gradient, rate, scalars)
