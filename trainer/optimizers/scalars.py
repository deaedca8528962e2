"""What the updates of all weights share, computed once for all of them."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.config import OptimizerConfig


class UpdateScalars(NamedTuple):
    """Float32 scalars of one update, the `num_updates`-th.

    rate:            the schedule's learning rate
    kept:            what decay at this rate leaves of a weight
    power1, power2:  beta1 and beta2 to the power of `num_updates`
    adam_epsilon:    TensorFlow's fused Adam divides by sqrt(v) + epsilon where the paper divides by sqrt(v / correction) +
                     epsilon: the same once the correction is taken out of both the step and epsilon
    """

    rate: tf.Tensor
    num_updates: tf.Tensor
    kept: tf.Tensor
    power1: tf.Tensor
    power2: tf.Tensor
    adam_epsilon: tf.Tensor


def update_scalars(optimizer: OptimizerConfig, rate: tf.Tensor, step: tf.Tensor) -> UpdateScalars:
    """Of the update that follows `step` finished ones (int64)."""
    num_updates = tf.cast(step + 1, tf.float32)
    power2 = tf.pow(optimizer.beta2, num_updates)
    return UpdateScalars(
        rate=rate,
        num_updates=num_updates,
        kept=1.0 - rate * optimizer.decay,
        power1=tf.pow(optimizer.beta1, num_updates),
        power2=power2,
        adam_epsilon=optimizer.epsilon * tf.sqrt(1.0 - power2),
    )
