"""Continues token sequences: greedy or sampled, in batches, with a key/value cache, the whole loop in one graph.

Axes: B rows, T tokens of the prompts (padded in front), G tokens that are generated, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from trainer.config import ModelConfig, SamplingConfig
from trainer.models import gpt
from trainer.models.blocks import Weights


def compile_generation(
    model: ModelConfig, weights: Weights, dtype: tf.DType, sampling: SamplingConfig, end_of_text: int
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function (prompts_BT, lengths_B, uniform_BG) -> tokens int32 [B, G].

    `uniform_BG` holds a random number in [0, 1) for each token, so that what a row becomes does not depend on the
    batch that it is in. After `end_of_text` a row holds nothing else.
    """
    num_tokens = sampling.max_tokens

    @tf.function(autograph=False)
    def generate(prompts_BT: tf.Tensor, lengths_B: tf.Tensor, uniform_BG: tf.Tensor) -> tf.Tensor:
        computed = {name: tf.cast(weight, dtype) for name, weight in weights.items()}
        batch, prompt_length = prompts_BT.shape
        positions_BT = tf.range(prompt_length)[None] - (prompt_length - lengths_B[:, None])
        cache = gpt.empty_cache(model, batch, prompt_length + num_tokens, dtype)
        logits_BV, cache = gpt.read(model, computed, prompts_BT, positions_BT, cache, place=0)

        def body(
            index: tf.Tensor, logits_BV: tf.Tensor, cache: gpt.Cache, ended_B: tf.Tensor, tokens_BG: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, gpt.Cache, tf.Tensor, tf.Tensor]:
            chosen_B = tf.where(ended_B, end_of_text, choose(logits_BV, uniform_BG[:, index], sampling))
            tokens_BG = tf.where(tf.range(num_tokens) == index, chosen_B[:, None], tokens_BG)
            position_B1 = (lengths_B + index)[:, None]
            logits_BV, cache = gpt.read(model, computed, chosen_B[:, None], position_B1, cache, prompt_length + index)
            return index + 1, logits_BV, cache, ended_B | (chosen_B == end_of_text), tokens_BG

        ended_B = tf.zeros((batch,), tf.bool)
        tokens_BG = tf.fill((batch, num_tokens), end_of_text)
        *_, tokens_BG = tf.while_loop(
            lambda index, logits, cache, ended_B, tokens: (index < num_tokens) & ~tf.reduce_all(ended_B),
            body,
            (0, logits_BV, cache, ended_B, tokens_BG),
        )
        return tokens_BG

    return generate


def choose(logits_BV: tf.Tensor, uniform_B: tf.Tensor, sampling: SamplingConfig) -> tf.Tensor:
    """One token a row, int32 [B], by the inverse of the cumulative distribution at `uniform_B`.

    Top-p is nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
    """
    if sampling.temperature == 0.0:
        return tf.argmax(logits_BV, -1, tf.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is None and sampling.top_p is None:
        return _draw(tf.nn.softmax(logits_BV), uniform_B)
    num_candidates = min(sampling.top_k or logits_BV.shape[1], logits_BV.shape[1])
    candidates_BK, tokens_BK = tf.math.top_k(logits_BV, num_candidates)
    probabilities_BK = tf.nn.softmax(candidates_BK)
    if sampling.top_p is not None:
        before_BK = tf.cumsum(probabilities_BK, axis=1, exclusive=True)
        probabilities_BK = tf.where(before_BK < sampling.top_p, probabilities_BK, 0.0)
    return tf.gather(tokens_BK, _draw(probabilities_BK, uniform_B), batch_dims=1)


def _draw(weights_BK: tf.Tensor, uniform_B: tf.Tensor) -> tf.Tensor:
    """An index a row, drawn in proportion to the weights."""
    reached_BK = tf.cumsum(weights_BK, axis=1)
    passed_BK = reached_BK <= uniform_B[:, None] * reached_BK[:, -1:]
    return tf.minimum(tf.reduce_sum(tf.cast(passed_BK, tf.int32), 1), weights_BK.shape[1] - 1)
