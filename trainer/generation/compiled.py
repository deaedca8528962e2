"""Generation as one graph: of a batch of prompts or sources the tokens that follow.

Axes: B rows, T tokens of the prompts (padded in front) or of an encoder-decoder's sources (padded behind), G tokens that are
written, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from trainer.config import GenerationConfig, ModelConfig
from trainer.generation.beam_search import search_beams
from trainer.generation.decoder import Decoder
from trainer.generation.sampling import sample
from trainer.models.blocks import Weights

Generate = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def compile_generation(
    model: ModelConfig,
    weights: Weights,
    dtype: tf.DType,
    generation: GenerationConfig,
    begin: int,
    ends: tuple[int, ...],
) -> Generate:
    """A function (tokens_BT, lengths_B, limits_B, uniform_BG) -> tokens int32 [B, G], one graph for each shape.

    A row has `lengths_B` tokens and gets at most `limits_B`, which is at most G. `uniform_BG` holds a random number in
    [0, 1) for each token, so that what a row becomes does not depend on the batch that it is in. A row that has ended, with
    one of `ends` or at its limit, holds nothing more but `ends[0]`, the end of text. `generation` is one that is settled; an
    encoder-decoder's texts begin after the token `begin` (`assembly.first_target_token`).
    """

    @tf.function(autograph=False)
    def compiled(tokens_BT: tf.Tensor, lengths_B: tf.Tensor, limits_B: tf.Tensor, uniform_BG: tf.Tensor) -> tf.Tensor:
        computed = {name: tf.cast(weight, dtype) for name, weight in weights.items()}
        return generate(model, computed, dtype, generation, begin, ends, tokens_BT, lengths_B, limits_B, uniform_BG)

    return compiled


def generate(
    model: ModelConfig,
    weights: Weights,
    dtype: tf.DType,
    generation: GenerationConfig,
    begin: int,
    ends: tuple[int, ...],
    tokens_BT: tf.Tensor,
    lengths_B: tf.Tensor,
    limits_B: tf.Tensor,
    uniform_BG: tf.Tensor,
) -> tf.Tensor:
    """What `compile_generation` compiles, of weights that are of `dtype` already. T and G must be known beforehand."""
    decoder = Decoder(model, weights, begin, dtype)
    beginning = decoder.start(tokens_BT, lengths_B, uniform_BG.shape[1])
    if generation.num_beams > 1:
        return search_beams(decoder, beginning, generation, ends, limits_B, uniform_BG.shape[1])
    return sample(decoder, beginning, generation, ends, limits_B, uniform_BG)
