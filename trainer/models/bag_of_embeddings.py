"""The family `bag_of_embeddings`: a text is the average of its tokens' embeddings.

Axes as in `blocks`; G texts that a row may hold.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import blocks
from trainer.models.blocks import DropoutKey, Weights


def averages(
    model: ModelConfig,
    weights: Weights,
    tokens_BT: tf.Tensor,
    segments_BT: tf.Tensor,
    num_segments: int,
    dropout_key: DropoutKey | None = None,
) -> tf.Tensor:
    """The mean of the embeddings of each text's tokens: [B, G, D], zeros where a row has no such text.

    Text g of a row is the tokens of segment g + 1 of `segments_BT` (int32; 0 is padding); there are at most `num_segments`.
    With a key there is dropout on the averages.
    """
    embedded_BTD = blocks.embed(weights["token_embedding"], tokens_BT)
    belongs_BGT = segments_BT[:, None, :] == tf.range(1, num_segments + 1)[:, None]
    lengths_BG1 = tf.reduce_sum(tf.cast(belongs_BGT, tf.float32), -1, keepdims=True)
    shares_BGT = tf.cast(belongs_BGT, tf.float32) / tf.maximum(lengths_BG1, 1.0)
    mean_BGD = tf.matmul(tf.cast(shares_BGT, embedded_BTD.dtype), embedded_BTD)
    return blocks.dropout(mean_BGD, model.dropout, dropout_key, site=0)
