"""The exponential moving average of a weight (Polyak and Juditsky 1992; as in TensorFlow's ExponentialMovingAverage)."""

from __future__ import annotations

import tensorflow as tf


def kept_of_average(decay: float, step: tf.Tensor) -> tf.Tensor:
    """What is kept of the averages after the update that follows `step` finished ones (int64): `decay`, but at first
    (1 + t) / (10 + t) after t updates, so that an average soon forgets where the weights began."""
    num_updates = tf.cast(step + 1, tf.float32)
    return tf.minimum(decay, (1.0 + num_updates) / (10.0 + num_updates))


def move_average(average: tf.Variable, weight: tf.Variable, kept: tf.Tensor) -> None:
    """average <- kept * average + (1 - kept) * weight."""
    average.assign_sub((1.0 - kept) * (average - weight))
