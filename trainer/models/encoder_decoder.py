"""The families `t5` and `encoder_decoder`: an encoder reads the source, a decoder writes the target and looks at what was read.

Both normalize first. T5 (Raffel et al. 2020, arXiv:1910.10683) has relative positions, shared by all layers of a side, and
dropout also within the feed-forward layers and at each side's end. Axes as in `blocks`; S is the time of the source.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import attention, blocks
from trainer.models.blocks import DropoutKey, Site, TokenOutput, Weights
from trainer.models.layers import run_block
from trainer.models.lookups import look_up

# Places of dropout in a layer: probabilities and output of each attention, within and after the feed-forward layer.
_ENCODER_SITES, _DECODER_SITES = 4, 6


def encode(
    model: ModelConfig,
    weights: Weights,
    source_BS: tf.Tensor,
    segments_BS: tf.Tensor,
    positions_BS: tf.Tensor | None = None,
    dropout_key: DropoutKey | None = None,
) -> tf.Tensor:
    """What the decoder looks at: [B, S, D], normalized. Dropout only where a key is given.

    All features are int32. A token sees those of its own segment alone: 0 is padding, and a row may hold several texts, from
    1 on, of which `positions_BS` counts the tokens from 0. Without positions a row is counted through.
    """
    mask = blocks.segment_mask(segments_BS, segments_BS)
    if model.positions == "relative":
        places = tf.range(blocks.sizes(source_BS)[1])
        mask += blocks.relative_bias(model, weights["encoder.relative_positions"], places, places, causal=False)
    x_BSD = _embed(model, weights, source_BS, positions_BS)
    x_BSD = blocks.dropout(x_BSD, model.dropout, dropout_key, site=0)
    positions_BS = _positions(source_BS, positions_BS)
    for layer in range(model.num_layers):
        name, site, around = f"encoder.blocks.{layer}", 1 + _ENCODER_SITES * layer, (positions_BS, mask)
        x_BSD = run_block(model, _encoder_block, weights, name, (x_BSD,), around, dropout_key, site)
    x_BSD = blocks.normalize(model, weights, "encoder.final_norm", x_BSD)
    return _final_dropout(model, x_BSD, dropout_key, 1 + _ENCODER_SITES * model.num_layers)


def logits(
    model: ModelConfig,
    weights: Weights,
    inputs_BT: tf.Tensor,
    target_segments_BT: tf.Tensor,
    encoded_BSD: tf.Tensor,
    source_segments_BS: tf.Tensor,
    positions_BT: tf.Tensor | None = None,
    dropout_key: DropoutKey | None = None,
) -> tf.Tensor:
    """Scores of the target's token after each of `inputs_BT` (int32): float32 [B, T, V]. Arguments as of `token_output`."""
    segments = (target_segments_BT, encoded_BSD, source_segments_BS)
    return blocks.token_scores(token_output(model, weights, inputs_BT, *segments, positions_BT, dropout_key))


def token_output(
    model: ModelConfig,
    weights: Weights,
    inputs_BT: tf.Tensor,
    target_segments_BT: tf.Tensor,
    encoded_BSD: tf.Tensor,
    source_segments_BS: tf.Tensor,
    positions_BT: tf.Tensor | None = None,
    dropout_key: DropoutKey | None = None,
) -> TokenOutput:
    """What the scores of the target's token after each of `inputs_BT` (int32) are made of.

    A target sees its own tokens up to each, and of the sources the one with its number. Arguments as of `encode`.
    """
    time = blocks.sizes(inputs_BT)[1]
    mask = blocks.causal_mask(time) + blocks.segment_mask(target_segments_BT, target_segments_BT)
    if model.positions == "relative":
        places = tf.range(time)
        mask += blocks.relative_bias(model, weights["decoder.relative_positions"], places, places, causal=True)
    source_mask = blocks.segment_mask(target_segments_BT, source_segments_BS)
    first_site = _first_decoder_site(model)
    x_BTD = _embed(model, weights, inputs_BT, positions_BT)
    x_BTD = blocks.dropout(x_BTD, model.dropout, dropout_key, first_site)
    positions_BT = _positions(inputs_BT, positions_BT)
    for layer in range(model.decoder_layers):
        name, site = f"decoder.blocks.{layer}", first_site + 1 + _DECODER_SITES * layer
        around = (positions_BT, mask, source_mask)
        x_BTD = run_block(model, _decoder_block, weights, name, (x_BTD, encoded_BSD), around, dropout_key, site)
    x_BTD = blocks.normalize(model, weights, "decoder.final_norm", x_BTD)
    x_BTD = _final_dropout(model, x_BTD, dropout_key, first_site + 1 + _DECODER_SITES * model.decoder_layers)
    return _token_output(model, weights, x_BTD)


class Cache(NamedTuple):
    """Keys and values of what was written so far and of the source, [B, K, S, W] for each layer. A mask is 0 where a place
    holds a token of the row, and a large negative number elsewhere. All tensors have the batch in front."""

    keys: tuple[tf.Tensor, ...]
    values: tuple[tf.Tensor, ...]
    mask_BS: tf.Tensor
    source_keys: tuple[tf.Tensor, ...]
    source_values: tuple[tf.Tensor, ...]
    source_mask_BS: tf.Tensor


def start_cache(
    model: ModelConfig,
    weights: Weights,
    encoded_BSD: tf.Tensor,
    source_segments_BS: tf.Tensor,
    num_places: int | tf.Tensor,
    dtype: tf.DType,
) -> Cache:
    """A cache with room for `num_places` tokens of each row's target. A row's source is all that is not padding."""
    batch = blocks.sizes(encoded_BSD)[0]
    empty = tf.zeros((batch, model.key_value_heads, num_places, model.head_width), dtype)
    sources = [
        attention.cross_keys_values(model, weights, f"decoder.blocks.{layer}.cross_attention", encoded_BSD)
        for layer in range(model.decoder_layers)
    ]
    return Cache(
        keys=(empty,) * model.decoder_layers,
        values=(empty,) * model.decoder_layers,
        mask_BS=tf.fill((batch, num_places), blocks.MASKED),
        source_keys=tuple(key for key, _ in sources),
        source_values=tuple(value for _, value in sources),
        source_mask_BS=tf.where(source_segments_BS > 0, 0.0, blocks.MASKED),
    )


def read(
    model: ModelConfig,
    weights: Weights,
    tokens_BT: tf.Tensor,
    positions_BT: tf.Tensor,
    cache: Cache,
    place: tf.Tensor | int,
) -> tuple[tf.Tensor, Cache]:
    """Reads T more tokens of each row's target into the cache's places `place ... place + T - 1`, and returns the scores of
    the token after the last of them, float32 [B, V]. A negative position marks padding in front of a row: it is never seen."""
    mask_BS, mask = blocks.cache_masks(cache.mask_BS, positions_BT < 0, place)
    if model.positions == "relative":
        places, all_places = tf.range(blocks.sizes(tokens_BT)[1]) + place, tf.range(blocks.sizes(mask_BS)[1])
        mask += blocks.relative_bias(model, weights["decoder.relative_positions"], places, all_places, causal=True)
    source_mask = cache.source_mask_BS[:, None, None, :]
    positions_BT = tf.maximum(positions_BT, 0)
    x_BTD = _embed(model, weights, tokens_BT, positions_BT)
    keys, values = list(cache.keys), list(cache.values)
    for layer in range(model.decoder_layers):
        name = f"decoder.blocks.{layer}"
        x_BTD, keys[layer], values[layer] = attention.attend_with_cache(
            model, weights, name, x_BTD, positions_BT, mask, keys[layer], values[layer], place
        )
        source = cache.source_keys[layer], cache.source_values[layer]
        x_BTD = _look_at_source(model, weights, name, x_BTD, *source, source_mask, None, 0)
        x_BTD = _feed_forward(model, weights, name, x_BTD, None, 0)
    x_BTD = blocks.normalize(model, weights, "decoder.final_norm", x_BTD[:, -1:])
    scores_B1V = blocks.token_scores(_token_output(model, weights, x_BTD))
    return scores_B1V[:, 0], cache._replace(keys=tuple(keys), values=tuple(values), mask_BS=mask_BS)


def _embed(model: ModelConfig, weights: Weights, tokens_BT: tf.Tensor, positions_BT: tf.Tensor | None) -> tf.Tensor:
    x_BTD = look_up(weights["token_embedding"], tokens_BT)
    if model.positions == "learned":
        x_BTD += blocks.learned_positions(weights, blocks.sizes(tokens_BT)[1], positions_BT)
    if model.positions == "sinusoidal":
        # Sines are of the order of 1, embeddings of D^-0.5, since they are the output's too (Vaswani et al. 2017, 3.4).
        sines = blocks.sinusoidal_positions(_positions(tokens_BT, positions_BT), model.width)
        x_BTD = x_BTD * model.width**0.5 + tf.cast(sines, x_BTD.dtype)
    return x_BTD


def _positions(tokens_BT: tf.Tensor, positions_BT: tf.Tensor | None) -> tf.Tensor:
    return tf.range(blocks.sizes(tokens_BT)[1])[None] if positions_BT is None else positions_BT


def _encoder_block(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BSD: tf.Tensor,
    positions_BS: tf.Tensor,
    mask: tf.Tensor,
    dropout_key: DropoutKey | None,
    site: Site,
) -> tf.Tensor:
    x_BSD = _look_at_itself(model, weights, name, x_BSD, positions_BS, mask, dropout_key, site)
    return _feed_forward(model, weights, name, x_BSD, dropout_key, site + 2)


def _decoder_block(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BTD: tf.Tensor,
    encoded_BSD: tf.Tensor,
    positions_BT: tf.Tensor,
    mask: tf.Tensor,
    source_mask: tf.Tensor,
    dropout_key: DropoutKey | None,
    site: Site,
) -> tf.Tensor:
    x_BTD = _look_at_itself(model, weights, name, x_BTD, positions_BT, mask, dropout_key, site, is_causal=True)
    key, value = attention.cross_keys_values(model, weights, f"{name}.cross_attention", encoded_BSD)
    x_BTD = _look_at_source(model, weights, name, x_BTD, key, value, source_mask, dropout_key, site + 2)
    return _feed_forward(model, weights, name, x_BTD, dropout_key, site + 4)


def _look_at_itself(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BTD: tf.Tensor,
    positions_BT: tf.Tensor,
    mask: tf.Tensor,
    dropout_key: DropoutKey | None,
    site: Site,
    *,
    is_causal: bool = False,
) -> tf.Tensor:
    normed = blocks.normalize(model, weights, f"{name}.attention_norm", x_BTD)
    return x_BTD + attention.self_attention(
        model, weights, f"{name}.attention", normed, positions_BT, mask, dropout_key, site, is_causal=is_causal
    )


def _look_at_source(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BTD: tf.Tensor,
    key_BKSW: tf.Tensor,
    value_BKSW: tf.Tensor,
    mask: tf.Tensor,
    dropout_key: DropoutKey | None,
    site: Site,
) -> tf.Tensor:
    normed = blocks.normalize(model, weights, f"{name}.cross_attention_norm", x_BTD)
    query = attention.cross_queries(model, weights, f"{name}.cross_attention", normed)
    mixed = attention.attend(model, query, key_BKSW, value_BKSW, mask, dropout_key, site)
    mixed = blocks.linear(model, weights, f"{name}.cross_attention.output", mixed)
    return x_BTD + blocks.dropout(mixed, model.dropout, dropout_key, site + 1)


def _feed_forward(
    model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor, dropout_key: DropoutKey | None, site: int
) -> tf.Tensor:
    normed = blocks.normalize(model, weights, f"{name}.feed_forward_norm", x_BTD)
    inner_key = dropout_key if model.family == "t5" else None
    hidden = blocks.feed_forward(model, weights, f"{name}.feed_forward", normed, inner_key, site)
    return x_BTD + blocks.dropout(hidden, model.dropout, dropout_key, site + 1)


def _final_dropout(model: ModelConfig, x_BTD: tf.Tensor, dropout_key: DropoutKey | None, site: int) -> tf.Tensor:
    return blocks.dropout(x_BTD, model.dropout, dropout_key if model.family == "t5" else None, site)


def _first_decoder_site(model: ModelConfig) -> int:
    return 2 + _ENCODER_SITES * model.num_layers


def _token_output(model: ModelConfig, weights: Weights, x_BTD: tf.Tensor) -> TokenOutput:
    """T5's embeddings begin wide, so that where they are the output too what is multiplied with them is made narrow."""
    if model.family == "t5" and model.tied_output:
        x_BTD *= model.width**-0.5
    return TokenOutput(x_BTD, weights["token_embedding" if model.tied_output else "output"])
