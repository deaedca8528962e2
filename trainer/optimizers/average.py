"""The exponential moving average of a weight (Polyak and Juditsky 1992; as in TensorFlow's ExponentialMovingAverage)."""

from __future__ import annotations

import tensorflow as tf


def move_average(average: tf.Variable, weight: tf.Variable, decay: float, step: tf.Tensor) -> None:
    """After the update that follows `step` finished ones: average <- d * average + (1 - d) * weight.

    d is `decay`, but at first (1 + t) / (10 + t) after t updates, so that the average soon forgets where the weights began.
    """
    num_updates = tf.cast(step + 1, tf.float32)
    now = tf.minimum(decay, (1.0 + num_updates) / (10.0 + num_updates))
    average.assign_sub((1.0 - now) * (average - weight))
