"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the momentum of a hidden matrix, made orthogonal.

Its length is made that of AdamW's updates (Liu et al. 2025, arXiv:2502.16982), so that AdamW's learning rate and decay serve
for both; `choice.py` applies the decay. All other weights are AdamW's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import tensorflow as tf

from trainer.config import OptimizerConfig
from trainer.models.parameters import Parameter

_NUM_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# The usual root mean square of AdamW's updates, over the learning rate (Liu et al. 2025, section 2.2).
_USUAL_RMS = 0.2


def update(
    optimizer: OptimizerConfig,
    parameter: Parameter,
    weight: tf.Variable,
    slots: Mapping[str, tf.Variable],
    gradient: tf.Tensor,
    rate: tf.Tensor,
) -> None:
    """Nesterov momentum, then each of the matrices that the weight is made of by itself: a joint one has singular values of 1
    when its parts together have them, and then the part whose gradient is largest (the values, of queries, keys and values)
    takes most of the update.
    """
    assert optimizer.momentum is not None
    momentum = optimizer.momentum * slots["momentum"] + gradient
    slots["momentum"].assign(momentum)
    ahead = gradient + optimizer.momentum * momentum
    changes = []
    for part in tf.split(ahead, list(parameter.hidden_columns), axis=1):
        # An orthogonal matrix of R rows and C columns has a root mean square of max(R, C)^-0.5.
        changes.append(_USUAL_RMS * math.sqrt(max(part.shape)) * orthogonalize(part))
    weight.assign_sub(rate * tf.concat(changes, axis=1))


def orthogonalize(matrix: tf.Tensor) -> tf.Tensor:
    """About U V^T of the matrix's U S V^T, by five Newton-Schulz iterations in its own precision: its singular values become
    0.7 to 1.2, the smallest ones less where they are below about a thousandth of the Frobenius norm.

    The iteration is odd, so that it acts on the singular values alone: s -> a s + b s^3 + c s^5.
    """
    rows, columns = matrix.shape
    x = tf.transpose(matrix) if rows > columns else matrix  # the smaller of the two products X X^T
    x /= tf.norm(x) + 1e-7
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * gram + c * tf.matmul(gram, gram), x)
    return tf.transpose(x) if rows > columns else x
