"""Attention: queries, keys and values, what each token gathers with them, and the same with a cache. Axes as in `blocks`."""

from __future__ import annotations

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import blocks, elementwise
from trainer.models.blocks import DropoutKey, Site, Weights
from trainer.models.causal_attention import causal_attention, fold_heads, unfold_heads
from trainer.models.parameters import query_blocks
from trainer.models.products import product


def rotate(x_BHTW: tf.Tensor, positions_BT: tf.Tensor, base: float) -> tf.Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), the halves paired as Llama pairs them."""
    half = x_BHTW.shape[-1] // 2
    frequencies = tf.pow(base, -tf.range(half, dtype=tf.float32) / half)
    angles = tf.cast(positions_BT, tf.float32)[:, None, :, None] * frequencies
    cosine, sine = tf.cos(angles), tf.sin(angles)
    left, right = tf.split(tf.cast(x_BHTW, tf.float32), 2, -1)
    rotated = tf.concat([left * cosine - right * sine, right * cosine + left * sine], -1)
    return tf.cast(rotated, x_BHTW.dtype)


def queries_keys_values(
    model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor, positions_BT: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Queries [B, H, T, W], keys and values [B, K, T, W], rotary positions applied."""
    width, heads, pairs = model.head_width, model.num_heads, model.key_value_heads
    batch, time = blocks.sizes(x_BTD)[:2]
    joint = blocks.linear(model, weights, f"{name}.query_key_value", x_BTD)
    if heads == pairs:
        query, key, value = tf.unstack(tf.transpose(tf.reshape(joint, (batch, time, 3, heads, width)), (2, 0, 3, 1, 4)))
    else:
        joint = tf.transpose(tf.reshape(joint, (batch, time, heads + 2 * pairs, width)), (0, 2, 1, 3))
        query, key, value = tf.split(joint, (heads, pairs, pairs), 1)
    if model.positions == "rotary":
        query, key = (rotate(part, positions_BT, model.rotary_base) for part in (query, key))
    return query, key, value


def cross_queries(model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor) -> tf.Tensor:
    """Queries [B, H, T, W] to another sequence. Where they stand says nothing about it: no positions are applied."""
    query = blocks.linear(model, weights, f"{name}.query", x_BTD)
    batch, time = blocks.sizes(x_BTD)[:2]
    return tf.transpose(tf.reshape(query, (batch, time, model.num_heads, model.head_width)), (0, 2, 1, 3))


def cross_keys_values(model: ModelConfig, weights: Weights, name: str, encoded_BSD: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Keys and values [B, K, S, W] of the sequence that is looked at."""
    joint = blocks.linear(model, weights, f"{name}.key_value", encoded_BSD)
    batch, time = blocks.sizes(encoded_BSD)[:2]
    joint = tf.reshape(joint, (batch, time, 2, model.key_value_heads, model.head_width))
    key, value = tf.unstack(tf.transpose(joint, (2, 0, 3, 1, 4)))
    return key, value


def attend(
    model: ModelConfig,
    query_BHTW: tf.Tensor,
    key_BKSW: tf.Tensor,
    value_BKSW: tf.Tensor,
    mask_TS: tf.Tensor,
    dropout_key: DropoutKey | None = None,
    site: Site = 0,
    *,
    is_causal: bool = False,
) -> tf.Tensor:
    """Dot-product attention [B, T, H W]; query heads that share a key head are computed in one product.

    `mask_TS`, float32, is added to the scores: 0 where a query may look, a large negative number elsewhere; [T, S], or
    [B, 1, T, S] where rows differ, or [B, H, T, S] with a bias of relative positions. The softmax is float32. Scores are
    scaled by W^-0.5, but for T5, which leaves that to its queries' weights (Raffel et al. 2020, arXiv:1910.10683).
    `is_causal` says that the mask hides from each query what comes after it in the same sequence.
    """
    batch, heads, time, width = blocks.sizes(query_BHTW)
    scale = 1.0 if model.family == "t5" else width**-0.5
    if is_causal and isinstance(time, int) and len(query_blocks(model, time)) > 1:
        mixed = causal_attention(model, query_BHTW, key_BKSW, value_BKSW, mask_TS, scale, dropout_key, site)
    else:
        scores = product(fold_heads(query_BHTW, model.key_value_heads), key_BKSW, transpose_b=True)
        probabilities = elementwise.masked_softmax(unfold_heads(scores, heads), mask_TS, scale)
        probabilities = blocks.dropout(probabilities, model.dropout, dropout_key, site)
        mixed = unfold_heads(product(fold_heads(probabilities, model.key_value_heads), value_BKSW), heads)
    return tf.reshape(tf.transpose(mixed, (0, 2, 1, 3)), (batch, time, heads * width))


def self_attention(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BTD: tf.Tensor,
    positions_BT: tf.Tensor,
    mask_TS: tf.Tensor,
    dropout_key: DropoutKey | None,
    site: Site,
    *,
    is_causal: bool = False,
) -> tf.Tensor:
    """What each token gathers from those that it may look at: [B, T, D]. Dropout at `site` and the one after it."""
    query, key, value = queries_keys_values(model, weights, name, x_BTD, positions_BT)
    mixed = attend(model, query, key, value, mask_TS, dropout_key, site, is_causal=is_causal)
    mixed = blocks.linear(model, weights, f"{name}.output", mixed)
    return blocks.dropout(mixed, model.dropout, dropout_key, site + 1)


def attend_with_cache(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BTD: tf.Tensor,
    positions_BT: tf.Tensor,
    mask_TS: tf.Tensor,
    keys_BKSW: tf.Tensor,
    values_BKSW: tf.Tensor,
    place: tf.Tensor | int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The attention of a layer that normalizes first, `name`, to tokens of which the keys and values are cached: its output
    added to `x_BTD`, and keys and values with the new ones in the places from `place` on. No dropout."""
    normed = blocks.normalize(model, weights, f"{name}.attention_norm", x_BTD)
    query, key, value = queries_keys_values(model, weights, f"{name}.attention", normed, positions_BT)
    keys_BKSW, values_BKSW = blocks.write_places(keys_BKSW, key, place), blocks.write_places(values_BKSW, value, place)
    mixed = attend(model, query, keys_BKSW, values_BKSW, mask_TS)
    return x_BTD + blocks.linear(model, weights, f"{name}.attention.output", mixed), keys_BKSW, values_BKSW
