"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235): of a matrix's second moment only row and column means are kept.

It is the paper's algorithm 4 without a first moment, with clipping of the update at d = 1 and the decay rate 1 - t^-0.8, but
for the step size: that is the learning rate itself, as with the other optimizers, and not relative to the weight (neither
max(epsilon2, RMS(X)) nor the relative step of section 8). `choice.py` applies the decay.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from trainer.config import OptimizerConfig

_LARGEST_RMS = 1.0  # d of the paper
_DECAY_POWER = 0.8


def update(
    optimizer: OptimizerConfig,
    weight: tf.Variable,
    slots: Mapping[str, tf.Variable],
    gradient: tf.Tensor,
    rate: tf.Tensor,
    num_updates: tf.Tensor,
) -> None:
    """`optimizer.epsilon` is added to the squares of the gradient (epsilon1 of the paper)."""
    decay = 1.0 - tf.pow(num_updates, -_DECAY_POWER)
    squares = tf.square(gradient) + optimizer.epsilon

    def averaged(slot: str, now: tf.Tensor) -> tf.Tensor:
        value = decay * slots[slot] + (1.0 - decay) * now
        slots[slot].assign(value)
        return value

    if "second_moments" in slots:
        change = gradient * tf.math.rsqrt(averaged("second_moments", squares))
    else:
        rows = averaged("second_moment_rows", tf.reduce_mean(squares, 1))
        columns = averaged("second_moment_columns", tf.reduce_mean(squares, 0))
        # The paper's sums over sums are these means over their mean. The roots are taken one by one, since the product of
        # two means of gradients that were always zero is none that float32 holds.
        row_factors, column_factors = tf.math.rsqrt(rows / tf.reduce_mean(rows)), tf.math.rsqrt(columns)
        change = gradient * row_factors[:, None] * column_factors[None, :]
    rms = tf.sqrt(tf.reduce_mean(tf.square(change)))
    weight.assign_sub(rate / tf.maximum(1.0, rms / _LARGEST_RMS) * change)
