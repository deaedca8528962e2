"""The family `bag_of_embeddings`: a text is the average of its tokens' embeddings.

Axes as in `blocks`; G texts that a row may hold.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import blocks
from trainer.models.blocks import DropoutKey, Weights
from trainer.models.lookups import look_up


def averages(
    model: ModelConfig,
    weights: Weights,
    tokens_BT: tf.Tensor,
    segments_BT: tf.Tensor,
    num_segments: int,
    dropout_key: DropoutKey | None = None,
) -> tf.Tensor:
    """The mean of the embeddings of each text's tokens: [B, G, D], as `blocks.segment_means` counts texts.

    With a key there is dropout on the averages.
    """
    embedded_BTD = look_up(weights["token_embedding"], tokens_BT)
    mean_BGD = blocks.segment_means(embedded_BTD, segments_BT, num_segments)
    return blocks.dropout(mean_BGD, model.dropout, dropout_key, site=0)
