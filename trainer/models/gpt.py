"""The family `gpt`: a pre-norm decoder, of which GPT-2 and Llama are both configurations. Axes as in `blocks`."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import attention, blocks
from trainer.models.blocks import DropoutKey, Site, TokenOutput, Weights
from trainer.models.layers import run_block
from trainer.models.lookups import look_up


def logits(
    model: ModelConfig,
    weights: Weights,
    tokens_BT: tf.Tensor,
    dropout_key: DropoutKey | None = None,
    segments_BT: tf.Tensor | None = None,
    positions_BT: tf.Tensor | None = None,
) -> tf.Tensor:
    """Scores of the token after each of `tokens_BT` (int32): float32 [B, T, V]. Arguments as of `hidden_states`."""
    x_BTD = hidden_states(model, weights, tokens_BT, dropout_key, segments_BT, positions_BT)
    return blocks.token_scores(token_output(model, weights, x_BTD))


def hidden_states(
    model: ModelConfig,
    weights: Weights,
    tokens_BT: tf.Tensor,
    dropout_key: DropoutKey | None = None,
    segments_BT: tf.Tensor | None = None,
    positions_BT: tf.Tensor | None = None,
) -> tf.Tensor:
    """What the last block leaves, before the final normalization: [B, T, D]. Dropout only where a key is given.

    A row may hold several texts: with `segments_BT` (int32: 0 for padding, from 1 on for each text) a token sees those of its
    own text alone, and `positions_BT` counts the tokens of each from 0. Without them a row is one text.
    """
    time = blocks.sizes(tokens_BT)[1]
    mask = blocks.causal_mask(time)
    if segments_BT is not None:
        mask += blocks.segment_mask(segments_BT, segments_BT)
    x_BTD = look_up(weights["token_embedding"], tokens_BT)
    if model.positions == "learned":
        x_BTD += blocks.learned_positions(weights, time, positions_BT)
    if positions_BT is None:
        positions_BT = tf.range(time)[None]
    x_BTD = blocks.dropout(x_BTD, model.dropout, dropout_key, site=0)
    for layer in range(model.num_layers):
        site, around = 1 + 3 * layer, (positions_BT, mask)
        x_BTD = run_block(model, _block, weights, f"blocks.{layer}", (x_BTD,), around, dropout_key, site)
    return x_BTD


def token_output(model: ModelConfig, weights: Weights, x_BTD: tf.Tensor) -> TokenOutput:
    """What the scores of each next token are made of, by what `hidden_states` gave."""
    x_BTD = blocks.normalize(model, weights, "final_norm", x_BTD)
    return TokenOutput(x_BTD, weights["token_embedding" if model.tied_output else "output"])


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
    normed = blocks.normalize(model, weights, f"{name}.attention_norm", x_BTD)
    x_BTD += attention.self_attention(
        model, weights, f"{name}.attention", normed, positions_BT, mask, dropout_key, site, is_causal=True
    )
    normed = blocks.normalize(model, weights, f"{name}.feed_forward_norm", x_BTD)
    hidden = blocks.feed_forward(model, weights, f"{name}.feed_forward", normed)
    return x_BTD + blocks.dropout(hidden, model.dropout, dropout_key, site + 2)


class Cache(NamedTuple):
    """Keys and values of what was read so far, [B, K, S, W] for each layer; `mask_BS` is 0 where a place holds a token of
    the row, and a large negative number elsewhere."""

    keys: tuple[tf.Tensor, ...]
    values: tuple[tf.Tensor, ...]
    mask_BS: tf.Tensor


def empty_cache(model: ModelConfig, batch_size: int | tf.Tensor, num_places: int | tf.Tensor, dtype: tf.DType) -> Cache:
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

    mask_BS, mask_B1TS = blocks.cache_masks(cache.mask_BS, is_padding, place)
    keys, values = list(cache.keys), list(cache.values)
    for layer in range(model.num_layers):
        name = f"blocks.{layer}"
        x_BTD, keys[layer], values[layer] = attention.attend_with_cache(
            model, weights, name, x_BTD, positions_BT, mask_B1TS, keys[layer], values[layer], place
        )
        normed = blocks.normalize(model, weights, f"{name}.feed_forward_norm", x_BTD)
        x_BTD += blocks.feed_forward(model, weights, f"{name}.feed_forward", normed)
    scores_B1V = blocks.token_scores(token_output(model, weights, x_BTD[:, -1:]))
    return scores_B1V[:, 0], Cache(tuple(keys), tuple(values), mask_BS)
