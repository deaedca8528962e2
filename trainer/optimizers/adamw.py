"""Adam with decoupled decay, which `choice.py` applies (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""

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
) -> None:
    """By TensorFlow's fused kernel, in place."""
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=slots["first_moments"].handle,
        v=slots["second_moments"].handle,
        beta1_power=scalars.power1,
        beta2_power=scalars.power2,
        lr=rate,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        epsilon=scalars.adam_epsilon,
        grad=gradient,
    )
