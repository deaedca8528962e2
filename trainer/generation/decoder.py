"""A model as generation sees it: it reads what the text begins with, then one token after another.

Axes: B rows, T tokens of the prompts or sources, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from trainer.config import ENCODER_DECODERS, ModelConfig
from trainer.models import blocks, encoder_decoder, gpt
from trainer.models.blocks import Weights

Cache = gpt.Cache | encoder_decoder.Cache


class Beginning(NamedTuple):
    """The scores of the first token [B, V], what was read, and where the first token goes: its position in each row [B],
    and its place in the cache."""

    logits_BV: tf.Tensor
    cache: Cache
    position_B: tf.Tensor
    place: int


@dataclass(frozen=True)
class Decoder:
    """A decoder goes on with a prompt; an encoder-decoder reads a source once and writes from `begin` on."""

    model: ModelConfig
    weights: Weights
    begin: int
    dtype: tf.DType

    def start(self, tokens_BT: tf.Tensor, lengths_B: tf.Tensor, num_tokens: int) -> Beginning:
        """Reads prompts, padded in front, or sources, padded behind, of `lengths_B` tokens; there is room for `num_tokens`."""
        batch, time = blocks.sizes(tokens_BT)
        if self.model.family in ENCODER_DECODERS:
            segments_BS = tf.cast(tf.range(time)[None] < lengths_B[:, None], tf.int32)
            encoded = encoder_decoder.encode(self.model, self.weights, tokens_BT, segments_BS)
            started = encoder_decoder.start_cache(self.model, self.weights, encoded, segments_BS, num_tokens, self.dtype)
            first, at = tf.fill((batch, 1), self.begin), tf.zeros((batch, 1), tf.int32)
            logits_BV, written = encoder_decoder.read(self.model, self.weights, first, at, started, 0)
            return Beginning(logits_BV, written, tf.ones_like(lengths_B), 1)
        # The last token is not read, so it needs no place.
        cache = gpt.empty_cache(self.model, batch, time + num_tokens - 1, self.dtype)
        positions_BT = tf.range(time)[None] - (time - lengths_B[:, None])
        logits_BV, cache = gpt.read(self.model, self.weights, tokens_BT, positions_BT, cache, place=0)
        return Beginning(logits_BV, cache, lengths_B, time)

    def read(self, token_B: tf.Tensor, position_B: tf.Tensor, cache: Cache, place: tf.Tensor) -> tuple[tf.Tensor, Cache]:
        """Reads one more token a row; returns the scores of the next, [B, V]."""
        tokens, positions = token_B[:, None], position_B[:, None]
        if isinstance(cache, encoder_decoder.Cache):
            return encoder_decoder.read(self.model, self.weights, tokens, positions, cache, place)
        return gpt.read(self.model, self.weights, tokens, positions, cache, place)
