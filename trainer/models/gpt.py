"""The family `gpt`: a pre-norm decoder, of which GPT-2 and Llama are both configurations. Axes as in `blocks`."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import blocks
from trainer.models.blocks import DropoutKey, Weights


def logits(model: ModelConfig, weights: Weights, tokens_BT: tf.Tensor, dropout_key: DropoutKey | None = None) -> tf.Tensor:
    """Scores of the token after each of `tokens_BT` (int32): float32 [B, T, V]. Dropout only where a key is given."""
    positions_BT = tf.range(tokens_BT.shape[1])[None]
    mask_TT = blocks.causal_mask(tokens_BT.shape[1])
    x_BTD = blocks.embed(weights["token_embedding"], tokens_BT)
    if model.positions == "learned":
        x_BTD += weights["position_embedding"][: tokens_BT.shape[1]]
    x_BTD = blocks.dropout(x_BTD, model.dropout, dropout_key, site=0)
    for layer in range(model.num_layers):
        name, site = f"blocks.{layer}", 1 + 3 * layer
        normed = blocks.normalize(model, weights, f"{name}.attention_norm", x_BTD)
        query, key, value = blocks.queries_keys_values(model, weights, f"{name}.attention", normed, positions_BT)
        mixed = blocks.attend(model, query, key, value, mask_TT, dropout_key, site)
        mixed = blocks.linear(weights, f"{name}.attention.output", mixed)
        x_BTD += blocks.dropout(mixed, model.dropout, dropout_key, site + 1)
        normed = blocks.normalize(model, weights, f"{name}.feed_forward_norm", x_BTD)
        hidden = blocks.feed_forward(model, weights, f"{name}.feed_forward", normed)
        x_BTD += blocks.dropout(hidden, model.dropout, dropout_key, site + 2)
    return _output(model, weights, x_BTD)


class Cache(NamedTuple):
    """Keys and values of what was read so far, [B, K, S, W] for each layer; `mask_BS` is 0 where a place holds a token of
    the row, and a large negative number elsewhere."""

    keys: tuple[tf.Tensor, ...]
    values: tuple[tf.Tensor, ...]
    mask_BS: tf.Tensor


def empty_cache(model: ModelConfig, batch_size: int, num_places: int, dtype: tf.DType) -> Cache:
    """A cache with room for `num_places` tokens a row."""
    empty = tf.zeros((batch_size, model.key_value_heads, num_places, model.head_width), dtype)
    return Cache((empty,) * model.num_layers, (empty,) * model.num_layers, tf.fill((batch_size, num_places), blocks.MASKED))


def read(
    model: ModelConfig,
    weights: Weights,
    tokens_BT: tf.Tensor,
    positions_BT: tf.Tensor,
    cache: Cache,
    place: tf.Tensor | int,
) -> tuple[tf.Tensor, Cache]:
    """Reads T more tokens a row into the cache's places `place ... place + T - 1`, and returns the scores of the token after
    the last of them, float32 [B, V]. A negative position marks padding in front of a row: it is never looked at."""
    is_padding = positions_BT < 0
    positions_BT = tf.maximum(positions_BT, 0)
    x_BTD = tf.gather(weights["token_embedding"], tokens_BT)
    if model.positions == "learned":
        x_BTD += tf.gather(weights["position_embedding"], positions_BT)

    mask_BT = tf.where(is_padding, blocks.MASKED, 0.0)
    mask_BS = tf.squeeze(_write(cache.mask_BS[:, None, :, None], mask_BT[:, None, :, None], place), (1, 3))
    places = tf.range(tokens_BT.shape[1]) + place
    later_TS = tf.where(tf.range(mask_BS.shape[1])[None] > places[:, None], blocks.MASKED, 0.0)
    mask_B1TS = mask_BS[:, None, None, :] + later_TS
    keys, values = [], []
    for layer in range(model.num_layers):
        name = f"blocks.{layer}"
        normed = blocks.normalize(model, weights, f"{name}.attention_norm", x_BTD)
        query, key, value = blocks.queries_keys_values(model, weights, f"{name}.attention", normed, positions_BT)
        keys.append(_write(cache.keys[layer], key, place))
        values.append(_write(cache.values[layer], value, place))
        mixed = blocks.attend(model, query, keys[-1], values[-1], mask_B1TS)
        x_BTD += blocks.linear(weights, f"{name}.attention.output", mixed)
        normed = blocks.normalize(model, weights, f"{name}.feed_forward_norm", x_BTD)
        x_BTD += blocks.feed_forward(model, weights, f"{name}.feed_forward", normed)
    return _output(model, weights, x_BTD[:, -1:])[:, 0], Cache(tuple(keys), tuple(values), mask_BS)


def _output(model: ModelConfig, weights: Weights, x_BTD: tf.Tensor) -> tf.Tensor:
    """Scores over the vocabulary; float32 whatever the precision of the products, since a softmax over them follows."""
    x_BTD = blocks.normalize(model, weights, "final_norm", x_BTD)
    table_VD = weights["token_embedding" if model.tied_output else "output"]
    scores = tf.matmul(tf.reshape(x_BTD, (-1, model.width)), table_VD, transpose_b=True)
    return tf.reshape(tf.cast(scores, tf.float32), (-1, x_BTD.shape[1], table_VD.shape[0]))


def _write(cached_BKSW: tf.Tensor, new_BKTW: tf.Tensor, place: tf.Tensor | int) -> tf.Tensor:
    """The cache with `new_BKTW` in the places from `place` on. Shapes stay static: one token may go to any place, several
    only to a place that is known when the graph is built."""
    if new_BKTW.shape[2] == 1:
        return tf.where(tf.range(cached_BKSW.shape[2])[:, None] == place, new_BKTW, cached_BKSW)
    assert isinstance(place, int)
    end = place + new_BKTW.shape[2]
    return tf.concat([cached_BKSW[:, :, :place], new_BKTW, cached_BKSW[:, :, end:]], 2)
