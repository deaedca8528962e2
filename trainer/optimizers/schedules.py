"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math

import tensorflow as tf

from trainer.config import OptimizerConfig


def learning_rate(optimizer: OptimizerConfig, num_steps: int, step: tf.Tensor) -> tf.Tensor:
    """The learning rate of the update that follows `step` finished ones (int64): a float32 scalar.

    A linear warm-up over `warmup_steps`, then the schedule, which reaches `minimum_learning_rate` at `num_steps`; only
    `exponential_rise` begins with that and ends with the peak (Smith 2017, arXiv:1506.01186).
    Cosine: Loshchilov and Hutter 2017 (arXiv:1608.03983); inverse square root: Vaswani et al. 2017;
    warmup-stable-decay: Hu et al. 2024 (arXiv:2404.06395), with a linear fall.
    """
    now = tf.cast(step, tf.float32)
    peak, least, warmup = optimizer.learning_rate, optimizer.minimum_learning_rate, optimizer.warmup_steps
    progress = tf.clip_by_value((now - warmup) / max(1, num_steps - warmup), 0.0, 1.0)
    match optimizer.schedule:
        case "constant":
            rate = tf.constant(peak)
        case "linear":
            rate = peak + (least - peak) * progress
        case "cosine":
            rate = least + (peak - least) * 0.5 * (1.0 + tf.cos(math.pi * progress))
        case "inverse_square_root":
            rate = tf.maximum(least, peak * tf.sqrt(max(1, warmup) / tf.maximum(now, max(1, warmup))))
        case "warmup_stable_decay":
            assert optimizer.decay_steps is not None
            fallen = (now - (num_steps - optimizer.decay_steps)) / optimizer.decay_steps
            rate = peak + (least - peak) * tf.clip_by_value(fallen, 0.0, 1.0)
        case "exponential_rise":
            rate = least * tf.pow(peak / least, tf.minimum(now / max(1, num_steps - 1), 1.0))
    return tf.where(now < warmup, peak * (now + 1.0) / max(1, warmup), rate)
