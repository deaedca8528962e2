"""Adam with decoupled decay, which `choice.py` applies (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from trainer.config import OptimizerConfig


def update(
    optimizer: OptimizerConfig,
    weight: tf.Variable,
    slots: Mapping[str, tf.Variable],
    gradient: tf.Tensor,
    rate: tf.Tensor,
    num_updates: tf.Tensor,
) -> None:
    """The fused kernel divides by sqrt(v) + epsilon where the paper divides by sqrt(v / correction) + epsilon: the same
    once the correction is taken out of both the step and epsilon."""
    power1, power2 = tf.pow(optimizer.beta1, num_updates), tf.pow(optimizer.beta2, num_updates)
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=slots["first_moments"].handle,
        v=slots["second_moments"].handle,
        beta1_power=power1,
        beta2_power=power2,
        lr=rate,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        epsilon=optimizer.epsilon * tf.sqrt(1.0 - power2),
        grad=gradient,
    )
