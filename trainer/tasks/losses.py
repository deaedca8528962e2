"""Losses as sums and counts, so that the mean can be taken once, over all replicas and micro-batches.

Axes: N things that are counted, V classes or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


def token_loss_sums(logits: tf.Tensor, targets: tf.Tensor, smoothing: float = 0.0) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum of the cross-entropies (nats) of the targets that count, and how many count: float32 scalars.

    `logits` float32 [..., V]; `targets` int32 [...], of which -1 does not count. With `smoothing` that share of a target's
    weight goes to all classes alike (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """
    targets_N = tf.reshape(targets, (-1,))
    logits_NV = tf.reshape(logits, (-1, logits.shape[-1]))
    counted_N = tf.cast(targets_N >= 0, tf.float32)
    losses_N = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(targets_N, 0), logits_NV)
    if smoothing:
        # The cross-entropy with the even distribution: the log of the partition function less the mean logit.
        even_N = tf.reduce_logsumexp(logits_NV, -1) - tf.reduce_mean(logits_NV, -1)
        losses_N = (1.0 - smoothing) * losses_N + smoothing * even_N
    return tf.reduce_sum(losses_N * counted_N), tf.reduce_sum(counted_N)


def num_right(logits: tf.Tensor, targets: tf.Tensor) -> dict[str, tf.Tensor]:
    """By row, how many targets that count are the likeliest, and how many count: `right` and `all`, int32 [B].

    `logits` float32 [B, ..., V]; `targets` int32 [B, ...], of which -1 does not count.
    """
    is_counted = targets >= 0
    is_right = is_counted & (tf.argmax(logits, -1, output_type=tf.int32) == targets)
    axes = list(range(1, len(targets.shape)))
    return {
        "right": tf.reduce_sum(tf.cast(is_right, tf.int32), axes),
        "all": tf.reduce_sum(tf.cast(is_counted, tf.int32), axes),
    }


def share_right(outputs: Mapping[str, np.ndarray]) -> float:
    """The accuracy that the rows of `num_right` amount to."""
    return float(outputs["right"].sum() / max(1, outputs["all"].sum()))
