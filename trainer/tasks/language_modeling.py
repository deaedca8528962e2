"""The task `language_modeling`: predict each next token. Axes as in `models.blocks`."""

from __future__ import annotations

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import gpt
from trainer.models.blocks import DropoutKey, Weights


def loss_sums(
    model: ModelConfig,
    weights: Weights,
    inputs_BT: tf.Tensor,
    targets_BT: tf.Tensor,
    dropout_key: DropoutKey | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum of the cross-entropies (nats) of the targets that count, and how many count: float32 scalars.

    A target of -1 does not count. Both are sums, so that the mean can be taken once, over all replicas and micro-batches.
    """
    logits_BTV = gpt.logits(model, weights, inputs_BT, dropout_key)
    counted_N = tf.reshape(targets_BT, (-1,)) >= 0
    targets_N = tf.maximum(tf.reshape(targets_BT, (-1,)), 0)
    logits_NV = tf.reshape(logits_BTV, (-1, logits_BTV.shape[-1]))
    losses_N = tf.nn.sparse_softmax_cross_entropy_with_logits(targets_N, logits_NV)
    counted_N = tf.cast(counted_N, tf.float32)
    return tf.reduce_sum(losses_N * counted_N), tf.reduce_sum(counted_N)
