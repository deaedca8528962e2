"""Texts one token at a time, the likeliest or drawn. Axes: B rows, G tokens that are written, V vocabulary, K candidates."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.config import GenerationConfig
from trainer.generation.decoder import Beginning, Cache, Decoder


def sample(
    decoder: Decoder,
    beginning: Beginning,
    generation: GenerationConfig,
    ends: tuple[int, ...],
    limits_B: tf.Tensor,
    uniform_BG: tf.Tensor,
) -> tf.Tensor:
    """Tokens int32 [B, G]; what a row becomes depends on its own prompt and random numbers alone."""
    num_tokens, end_of_text = uniform_BG.shape[1], ends[0]

    def write(
        index: tf.Tensor | int, logits_BV: tf.Tensor, ended_B: tf.Tensor, tokens_BG: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        chosen_B = tf.where(ended_B, end_of_text, choose(logits_BV, uniform_BG[:, index], generation))
        tokens_BG = tf.where(tf.range(num_tokens) == index, chosen_B[:, None], tokens_BG)
        return chosen_B, ended_B | is_end(chosen_B, ends) | (index + 1 >= limits_B), tokens_BG

    def body(index: tf.Tensor, last_B: tf.Tensor, cache: Cache, ended_B: tf.Tensor, tokens_BG: tf.Tensor) -> tuple[Any, ...]:
        # Rows that have ended go no further, since beyond their limit there may be no position.
        position_B = beginning.position_B + tf.minimum(index, limits_B - 1) - 1
        logits_BV, cache = decoder.read(last_B, position_B, cache, beginning.place + index - 1)
        last_B, ended_B, tokens_BG = write(index, logits_BV, ended_B, tokens_BG)
        return index + 1, last_B, cache, ended_B, tokens_BG

    ended_B, tokens_BG = tf.zeros_like(limits_B, tf.bool), tf.zeros_like(uniform_BG, tf.int32) + end_of_text
    last_B, ended_B, tokens_BG = write(0, beginning.logits_BV, ended_B, tokens_BG)
    *_, tokens_BG = tf.while_loop(
        lambda index, last, cache, ended_B, tokens: (index < num_tokens) & ~tf.reduce_all(ended_B),
        body,
        (1, last_B, beginning.cache, ended_B, tokens_BG),
    )
    return tokens_BG


def choose(logits_BV: tf.Tensor, uniform_B: tf.Tensor, generation: GenerationConfig) -> tf.Tensor:
    """One token a row, int32 [B], by the inverse of the cumulative distribution at `uniform_B`.

    Top-p is nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
    """
    assert generation.temperature is not None
    if generation.temperature == 0.0:
        return tf.argmax(logits_BV, -1, tf.int32)
    logits_BV = logits_BV / generation.temperature
    if generation.top_k is None and generation.top_p is None:
        return _draw(tf.nn.softmax(logits_BV), uniform_B)
    num_candidates = min(generation.top_k or logits_BV.shape[1], logits_BV.shape[1])
    candidates_BK, tokens_BK = tf.math.top_k(logits_BV, num_candidates)
    probabilities_BK = tf.nn.softmax(candidates_BK)
    if generation.top_p is not None:
        before_BK = tf.cumsum(probabilities_BK, axis=1, exclusive=True)
        probabilities_BK = tf.where(before_BK < generation.top_p, probabilities_BK, 0.0)
    return tf.gather(tokens_BK, _draw(probabilities_BK, uniform_B), batch_dims=1)


def is_end(tokens: tf.Tensor, ends: tuple[int, ...]) -> tf.Tensor:
    return tf.reduce_any(tokens[..., None] == tf.constant(ends), -1)


def _draw(weights_BK: tf.Tensor, uniform_B: tf.Tensor) -> tf.Tensor:
    """An index a row, drawn in proportion to the weights."""
    reached_BK = tf.cumsum(weights_BK, axis=1)
    passed_BK = reached_BK <= uniform_B[:, None] * reached_BK[:, -1:]
    return tf.minimum(tf.reduce_sum(tf.cast(passed_BK, tf.int32), 1), weights_BK.shape[1] - 1)
