"""Beam search: the likeliest of several texts that are written side by side.

Axes: B rows, K beams of a row, G tokens that are written, V vocabulary, C candidates of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.config import GenerationConfig
from trainer.generation.decoder import Beginning, Cache, Decoder
from trainer.generation.sampling import is_end

IMPOSSIBLE = -1e9  # the log-probability of a beam that is not there; finite, so that it may be divided and compared


class Beams(NamedTuple):
    """The running beams' tokens and log-probabilities, and the best texts that have ended, by what they are compared with."""

    tokens_BKG: tf.Tensor
    log_probabilities_BK: tf.Tensor
    ended_BKG: tf.Tensor
    scores_BK: tf.Tensor


def search_beams(
    decoder: Decoder,
    beginning: Beginning,
    generation: GenerationConfig,
    ends: tuple[int, ...],
    limits_B: tf.Tensor,
    num_tokens: int,
) -> tf.Tensor:
    """Tokens int32 [B, G] of each row's best text.

    A text is worth its log-probability, divided by ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144,
    equation 14, without coverage), where the length counts the end's token. Also one that is cut at the row's limit counts.
    The search is over when no running beam can overtake the best text, even if all it had yet to write were certain.
    """
    num_beams = generation.num_beams
    batch = tf.shape(limits_B)[0]

    def penalty(length: tf.Tensor | int) -> tf.Tensor:
        return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** generation.length_penalty

    def write(index: tf.Tensor | int, logits_NV: tf.Tensor, beams: Beams) -> tuple[Beams, tf.Tensor]:
        """Each beam's best next tokens; the running ones that are kept, and which beam each was [B, K]."""
        scores_BV = _continuations(logits_NV, beams.log_probabilities_BK)
        # Of each beam's continuations as many as there are ends may end: enough are left to run on.
        values_BC, places_BC = tf.math.top_k(scores_BV, min(num_beams * (1 + len(ends)), scores_BV.shape[1]))
        parents_BC, next_BC = places_BC // logits_NV.shape[1], places_BC % logits_NV.shape[1]
        written_BCG = tf.gather(beams.tokens_BKG, parents_BC, batch_dims=1)
        written_BCG = tf.where(tf.range(num_tokens) == index, next_BC[:, :, None], written_BCG)

        ends_BC = is_end(next_BC, ends) | (index + 1 >= limits_B)[:, None]
        ended_values_BC = tf.where(ends_BC, values_BC, IMPOSSIBLE) / penalty(index + 1)
        scores_BK, best_BK = tf.math.top_k(tf.concat([beams.scores_BK, ended_values_BC], 1), num_beams)
        ended_BKG = tf.gather(tf.concat([beams.ended_BKG, written_BCG], 1), best_BK, batch_dims=1)

        running_BK, kept_BK = tf.math.top_k(tf.where(ends_BC, IMPOSSIBLE, values_BC), num_beams)
        tokens_BKG = tf.gather(written_BCG, kept_BK, batch_dims=1)
        parents_BK = tf.gather(parents_BC, kept_BK, batch_dims=1)
        return Beams(tokens_BKG, running_BK, ended_BKG, scores_BK), parents_BK

    def body(index: tf.Tensor, cache: Cache, parents_BK: tf.Tensor, beams: Beams) -> tuple[tf.Tensor, Cache, tf.Tensor, Beams]:
        cache = _reorder(cache, parents_BK)
        last_N = tf.reshape(tf.gather(beams.tokens_BKG, index - 1, axis=2), (-1,))
        position_B = beginning.position_B + tf.minimum(index, limits_B - 1) - 1
        position_N = tf.repeat(position_B, num_beams)
        logits_NV, cache = decoder.read(last_N, position_N, cache, beginning.place + index - 1)
        beams, parents_BK = write(index, logits_NV, beams)
        return index + 1, cache, parents_BK, beams

    def goes_on(index: tf.Tensor, cache: Cache, parents: tf.Tensor, beams: Beams) -> tf.Tensor:
        reachable_B = tf.reduce_max(beams.log_probabilities_BK, 1) / penalty(limits_B)
        return (index < num_tokens) & tf.reduce_any(reachable_B > tf.reduce_max(beams.scores_BK, 1))

    # In the beginning there is one beam; the others come from its second-best tokens and so on.
    only_first_BK = tf.tile(tf.constant([[0.0] + [IMPOSSIBLE] * (num_beams - 1)]), (batch, 1))
    empty_BKG = tf.fill((batch, num_beams, num_tokens), ends[0])
    beams = Beams(empty_BKG, only_first_BK, empty_BKG, tf.fill((batch, num_beams), IMPOSSIBLE))
    beams, parents_BK = write(0, tf.repeat(beginning.logits_BV, num_beams, axis=0), beams)
    cache = tf.nest.map_structure(lambda each: tf.repeat(each, num_beams, axis=0), beginning.cache)
    *_, beams = tf.while_loop(goes_on, body, (1, cache, parents_BK, beams))
    return beams.ended_BKG[:, 0]


def _continuations(logits_NV: tf.Tensor, log_probabilities_BK: tf.Tensor) -> tf.Tensor:
    """The log-probability of each beam with each next token: [B, K V]."""
    num_beams, vocabulary_size = log_probabilities_BK.shape[1], logits_NV.shape[1]
    scores_NV = tf.nn.log_softmax(logits_NV) + tf.reshape(log_probabilities_BK, (-1, 1))
    return tf.reshape(scores_NV, (-1, num_beams * vocabulary_size))


def _reorder(cache: Cache, parents_BK: tf.Tensor) -> Cache:
    """What each beam's parent has read. The source and the prompt's padding are the same for all beams of a row."""
    num_beams = parents_BK.shape[1]
    rows_N = tf.reshape(parents_BK + tf.range(tf.shape(parents_BK)[0])[:, None] * num_beams, (-1,))
    keys = tuple(tf.gather(each, rows_N) for each in cache.keys)
    values = tuple(tf.gather(each, rows_N) for each in cache.values)
    return cache._replace(keys=keys, values=values)
