"""The family `bert`: an encoder that normalizes after each addition (Devlin et al. 2019, arXiv:1810.04805).

Axes as in `blocks`.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import attention, blocks
from trainer.models.blocks import DropoutKey, Site, TokenOutput, Weights
from trainer.models.layers import run_block
from trainer.models.lookups import look_up


def hidden_states(
    model: ModelConfig,
    weights: Weights,
    tokens_BT: tf.Tensor,
    segments_BT: tf.Tensor,
    types_BT: tf.Tensor | None = None,
    positions_BT: tf.Tensor | None = None,
    dropout_key: DropoutKey | None = None,
) -> tf.Tensor:
    """What the last block leaves: [B, T, D]. Dropout only where a key is given.

    All features are int32. A token sees those of its own segment alone: 0 is padding, and a row may hold several texts, from
    1 on, of which `positions_BT` counts the tokens from 0. Without positions a row is counted through; without types all
    are 0.
    """
    mask = blocks.segment_mask(segments_BT, segments_BT)
    x_BTD = look_up(weights["token_embedding"], tokens_BT)
    time = blocks.sizes(tokens_BT)[1]
    x_BTD += blocks.learned_positions(weights, time, positions_BT)
    if model.token_types:
        table = weights["type_embedding"]
        x_BTD += table[0] if types_BT is None else look_up(table, types_BT)
    if positions_BT is None:
        positions_BT = tf.range(time)[None]
    x_BTD = blocks.normalize(model, weights, "embedding_norm", x_BTD)
    x_BTD = blocks.dropout(x_BTD, model.dropout, dropout_key, site=0)
    for layer in range(model.num_layers):
        site, around = 1 + 3 * layer, (positions_BT, mask)
        x_BTD = run_block(model, _block, weights, f"blocks.{layer}", (x_BTD,), around, dropout_key, site)
    return x_BTD


def pooled(model: ModelConfig, weights: Weights, x_BD: tf.Tensor) -> tf.Tensor:
    """What a classifier reads of the vectors at [CLS], `x_BD`: [B, D]."""
    return tf.tanh(blocks.linear(model, weights, "pooler", x_BD))


def token_logits(model: ModelConfig, weights: Weights, x_BTD: tf.Tensor) -> tf.Tensor:
    """Scores of the token that stands at each place, by what `hidden_states` gave: float32 [B, T, V]."""
    return blocks.token_scores(token_output(model, weights, x_BTD))


def token_output(model: ModelConfig, weights: Weights, x_BTD: tf.Tensor) -> TokenOutput:
    """What `token_logits` are made of."""
    x_BTD = blocks.activate(model, blocks.linear(model, weights, "masked.transform", x_BTD))
    x_BTD = blocks.normalize(model, weights, "masked.norm", x_BTD)
    return TokenOutput(x_BTD, weights["token_embedding"], weights["masked.bias"])


def _block(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BTD: tf.Tensor,
    positions_BT: tf.Tensor,
    mask: tf.Tensor,
    dropout_key: DropoutKey | None,
    site: Site,
) -> tf.Tensor:
    x_BTD += attention.self_attention(model, weights, f"{name}.attention", x_BTD, positions_BT, mask, dropout_key, site)
    x_BTD = blocks.normalize(model, weights, f"{name}.attention_norm", x_BTD)
    hidden = blocks.feed_forward(model, weights, f"{name}.feed_forward", x_BTD)
    x_BTD += blocks.dropout(hidden, model.dropout, dropout_key, site + 2)
    return blocks.normalize(model, weights, f"{name}.feed_forward_norm", x_BTD)
