"""Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2): the sign of one momentum. `choice.py` applies the decay.

Each number moves by the whole learning rate, which is therefore 3 to 10 times smaller than AdamW's, and the decay as much
larger (section 5 of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from trainer.config import OptimizerConfig


def update(
    optimizer: OptimizerConfig, weight: tf.Variable, slots: Mapping[str, tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
) -> None:
    momentum = slots["momentum"]
    weight.assign_sub(rate * tf.sign(optimizer.beta1 * momentum + (1.0 - optimizer.beta1) * gradient))
    momentum.assign(optimizer.beta2 * momentum + (1.0 - optimizer.beta2) * gradient)
