"""LAMB (You et al. 2020, arXiv:1904.00962, algorithm 2): Adam's direction, as long as the weight itself, for large batches."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from trainer.config import OptimizerConfig
from trainer.optimizers.scalars import UpdateScalars


def update(
    optimizer: OptimizerConfig,
    weight: tf.Variable,
    slots: Mapping[str, tf.Variable],
    gradient: tf.Tensor,
    rate: tf.Tensor,
    scalars: UpdateScalars,
    *,
    is_matrix: bool,
) -> None:
    """A layer of the paper is one weight here, and phi the identity. Gains and biases have neither decay nor trust ratio: they
    are updated as by Adam. The trust ratio is 1, too, where the weight or its update is zero, or it would never move.
    """
    first = optimizer.beta1 * slots["first_moments"] + (1.0 - optimizer.beta1) * gradient
    second = optimizer.beta2 * slots["second_moments"] + (1.0 - optimizer.beta2) * tf.square(gradient)
    slots["first_moments"].assign(first)
    slots["second_moments"].assign(second)
    corrected_first = first / (1.0 - scalars.power1)
    corrected_second = second / (1.0 - scalars.power2)
    change = corrected_first / (tf.sqrt(corrected_second) + optimizer.epsilon)
    if is_matrix:
        change += optimizer.decay * weight
        length, change_length = tf.norm(weight), tf.norm(change)
        rate *= tf.where((length > 0.0) & (change_length > 0.0), tf.math.divide_no_nan(length, change_length), 1.0)
    weight.assign_sub(rate * change)
