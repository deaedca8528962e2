"""Our models against those of `transformers`, with the same random weights in float32: with padding, and packed in a row.

Axes as in `models.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.transformers_models import (
    LENGTH,
    VOCABULARY_SIZE,
    Arrays,
    their_bert,
    their_gpt2,
    their_llama,
    their_t5,
)
from trainer.config import ModelConfig
from trainer.models import bert, blocks, encoder_decoder, gpt
from trainer.models.parameters import linear, matrix_deviation, normalization, parameters

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("tensorflow")

TARGET_LENGTH = 17
LARGEST_DIFFERENCE = 1e-4

GPT2 = ModelConfig(num_layers=2, num_heads=4, width=16)
LLAMA = ModelConfig(
    num_layers=2,
    num_heads=4,
    num_key_value_heads=2,
    width=16,
    width_per_head=6,
    feed_forward_width=24,
    positions="rotary",
    normalization="rms_norm",
    activation="swiglu",
    biases=False,
    tied_output=False,
)
BERT = ModelConfig(family="bert", num_layers=2, num_heads=4, width=16)
# So few and short buckets that sequences reach the last.
T5 = ModelConfig(
    family="t5",
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    width=16,
    width_per_head=6,
    relative_buckets=8,
    relative_distance=14,
)
T5_GATED = T5.model_copy(update={"activation": "gated_gelu", "tied_output": False, "feed_forward_width": 20})
T5S = pytest.mark.parametrize("model", [T5, T5_GATED], ids=["relu-tied", "gated-untied"])


# -- Weights, and rows of tokens.


def random_weights(specification: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights far from their beginnings, so that no gain or bias can be forgotten without notice."""
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(float(weight.initializer == "ones"), 0.3, weight.shape).astype(np.float32)
        for name, weight in specification.items()
    }


def tensors(weights: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(weight) for name, weight in weights.items()}


def bert_weights() -> dict[str, np.ndarray]:
    """With the heads that the tasks put on it."""
    width = BERT.width
    heads = linear("pooler", width, width, matrix_deviation(width)) | normalization(BERT, "masked.norm")
    heads |= linear("masked.transform", width, width, matrix_deviation(width))
    weights = random_weights(parameters(BERT, VOCABULARY_SIZE, LENGTH) | heads)
    return weights | {"masked.bias": np.random.default_rng(1).normal(size=VOCABULARY_SIZE).astype(np.float32)}


def random_tokens(batch: int, length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY_SIZE, (batch, length), np.int32)


def padding_mask(lengths: list[int], length: int) -> np.ndarray:
    """[B, T] int32: 1 for the tokens of each row, 0 for the padding after them."""
    return (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)


def packed(lengths: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions [1, T] of a row that holds texts of these lengths, and padding after them."""
    segments, positions = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    for number, (begin, size) in enumerate(zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True)):
        segments[0, begin : begin + size], positions[0, begin : begin + size] = number + 1, np.arange(size)
    return segments, positions


def torch_tensor(array: np.ndarray) -> Any:
    return torch.from_numpy(array.astype(np.int64))


def assert_close(ours: tf.Tensor | np.ndarray, theirs: Any, is_real: np.ndarray | None = None) -> None:
    difference = np.abs(np.asarray(ours) - theirs.detach().numpy())
    assert difference.shape == tuple(theirs.shape)
    if is_real is not None:
        difference = difference[is_real.astype(bool)]
    assert difference.max() <= LARGEST_DIFFERENCE


DECODERS: Any = pytest.mark.parametrize(
    ("model", "make"), [(GPT2, their_gpt2), (LLAMA, their_llama)], ids=["gpt2", "llama-grouped-wide-heads"]
)
MakeModel = Callable[[ModelConfig, Arrays], Any]


@DECODERS
def test_decoders_give_the_logits_of_transformers(model: ModelConfig, make: MakeModel) -> None:
    weights, tokens = random_weights(parameters(model, VOCABULARY_SIZE, LENGTH)), random_tokens(3, LENGTH)
    theirs = make(model, weights)(torch_tensor(tokens)).logits
    assert theirs.std() > 1
    assert_close(gpt.logits(model, tensors(weights), tf.constant(tokens)), theirs)


@DECODERS
@pytest.mark.parametrize("side", ["after", "in front"])
def test_decoders_do_not_see_padding(model: ModelConfig, make: MakeModel, side: str) -> None:
    weights, tokens = random_weights(parameters(model, VOCABULARY_SIZE, LENGTH)), random_tokens(3, LENGTH)
    is_real = padding_mask([24, 9, 1], LENGTH)
    is_real = is_real[:, ::-1].copy() if side == "in front" else is_real
    positions = np.maximum(np.cumsum(is_real, 1) - 1, 0).astype(np.int32)
    theirs = make(model, weights)(
        torch_tensor(tokens), attention_mask=torch_tensor(is_real), position_ids=torch_tensor(positions)
    )
    features = {"segments_BT": tf.constant(is_real), "positions_BT": tf.constant(positions)}
    assert_close(gpt.logits(model, tensors(weights), tf.constant(tokens), **features), theirs.logits, is_real)


@DECODERS
def test_decoders_read_texts_packed_in_a_row_as_alone(model: ModelConfig, make: MakeModel) -> None:
    weights, tokens = random_weights(parameters(model, VOCABULARY_SIZE, LENGTH)), random_tokens(1, LENGTH)
    (segments, positions), theirs = packed([8, 3, 11], LENGTH), make(model, weights)
    ours = gpt.logits(
        model,
        tensors(weights),
        tf.constant(tokens),
        segments_BT=tf.constant(segments),
        positions_BT=tf.constant(positions),
    )
    for text in (1, 2, 3):
        alone = theirs(torch_tensor(tokens[segments == text][None])).logits
        assert_close(ours.numpy()[segments == text][None], alone)


@DECODERS
def test_decoders_read_on_with_a_cache_as_transformers_read_at_once(model: ModelConfig, make: MakeModel) -> None:
    weights, tokens = random_weights(parameters(model, VOCABULARY_SIZE, LENGTH)), random_tokens(2, LENGTH)
    theirs = make(model, weights)(torch_tensor(tokens)).logits
    cache = gpt.empty_cache(model, 2, LENGTH, tf.float32)
    scores, cache = gpt.read(model, tensors(weights), tf.constant(tokens[:, :5]), tf.range(5)[None] + [[0], [0]], cache, 0)
    assert_close(scores, theirs[:, 4])
    for place in range(5, LENGTH):
        token, position = tf.constant(tokens[:, place : place + 1]), tf.fill((2, 1), place)
        scores, cache = gpt.read(model, tensors(weights), token, position, cache, place)
        assert_close(scores, theirs[:, place])


def test_bert_gives_the_vectors_and_logits_of_transformers_with_padding_and_types() -> None:
    weights, tokens, types = bert_weights(), random_tokens(3, LENGTH), random_tokens(3, LENGTH, seed=2) % 2
    is_real, theirs = padding_mask([24, 9, 1], LENGTH), their_bert(BERT, weights)
    features = {"attention_mask": torch_tensor(is_real), "token_type_ids": torch_tensor(types)}
    of_trunk, of_head = theirs.bert(torch_tensor(tokens), **features), theirs(torch_tensor(tokens), **features)

    arguments = (tf.constant(tokens), tf.constant(is_real), tf.constant(types))
    hidden = bert.hidden_states(BERT, tensors(weights), *arguments)
    assert_close(hidden, of_trunk.last_hidden_state, is_real)
    assert_close(bert.pooled(BERT, tensors(weights), hidden[:, 0]), of_trunk.pooler_output)
    assert_close(bert.token_logits(BERT, tensors(weights), hidden), of_head.prediction_logits, is_real)


def test_bert_reads_texts_packed_in_a_row_as_alone_and_types_of_zero_where_none_are_given() -> None:
    weights, tokens = bert_weights(), random_tokens(1, LENGTH)
    (segments, positions), theirs = packed([8, 3, 11], LENGTH), their_bert(BERT, weights)
    hidden = bert.hidden_states(
        BERT, tensors(weights), tf.constant(tokens), tf.constant(segments), positions_BT=tf.constant(positions)
    )
    for text in (1, 2, 3):
        alone = theirs.bert(torch_tensor(tokens[segments == text][None])).last_hidden_state
        assert_close(hidden.numpy()[segments == text][None], alone)


@T5S
def test_t5_gives_the_logits_of_transformers_with_padding_on_both_sides(model: ModelConfig) -> None:
    weights = random_weights(parameters(model, VOCABULARY_SIZE, LENGTH, TARGET_LENGTH))
    source, inputs = random_tokens(3, LENGTH), random_tokens(3, TARGET_LENGTH, seed=2)
    of_source, of_target = padding_mask([24, 9, 1], LENGTH), padding_mask([5, 17, 2], TARGET_LENGTH)
    theirs = their_t5(model, weights)(
        torch_tensor(source),
        attention_mask=torch_tensor(of_source),
        decoder_input_ids=torch_tensor(inputs),
        decoder_attention_mask=torch_tensor(of_target),
    )
    assert theirs.logits.std() > 0.2

    encoded = encoder_decoder.encode(model, tensors(weights), tf.constant(source), tf.constant(of_source))
    assert_close(encoded, theirs.encoder_last_hidden_state, of_source)
    segments = (tf.constant(of_target), encoded, tf.constant(of_source))
    ours = encoder_decoder.logits(model, tensors(weights), tf.constant(inputs), *segments)
    assert_close(ours, theirs.logits, of_target)


@T5S
def test_t5_reads_pairs_packed_in_a_row_as_alone(model: ModelConfig) -> None:
    weights = random_weights(parameters(model, VOCABULARY_SIZE, LENGTH, TARGET_LENGTH))
    source, inputs = random_tokens(1, LENGTH), random_tokens(1, TARGET_LENGTH, seed=2)
    sources, targets = packed([11, 3, 8], LENGTH)[0], packed([2, 9, 5], TARGET_LENGTH)[0]
    encoded = encoder_decoder.encode(model, tensors(weights), tf.constant(source), tf.constant(sources))
    segments = (tf.constant(targets), encoded, tf.constant(sources))
    ours = encoder_decoder.logits(model, tensors(weights), tf.constant(inputs), *segments)
    theirs = their_t5(model, weights)
    for text in (1, 2, 3):
        alone = theirs(
            torch_tensor(source[sources == text][None]), decoder_input_ids=torch_tensor(inputs[targets == text][None])
        )
        assert_close(ours.numpy()[targets == text][None], alone.logits)


@T5S
def test_t5_reads_on_with_a_cache_as_transformers_read_at_once(model: ModelConfig) -> None:
    weights = random_weights(parameters(model, VOCABULARY_SIZE, LENGTH, TARGET_LENGTH))
    source, inputs = random_tokens(2, LENGTH), random_tokens(2, TARGET_LENGTH, seed=2)
    is_real = padding_mask([24, 9], LENGTH)
    theirs = their_t5(model, weights)(
        torch_tensor(source), attention_mask=torch_tensor(is_real), decoder_input_ids=torch_tensor(inputs)
    ).logits
    encoded = encoder_decoder.encode(model, tensors(weights), tf.constant(source), tf.constant(is_real))
    arguments = (tf.constant(is_real), TARGET_LENGTH, tf.float32)
    cache = encoder_decoder.start_cache(model, tensors(weights), encoded, *arguments)
    for place in range(TARGET_LENGTH):
        token, position = tf.constant(inputs[:, place : place + 1]), tf.fill((2, 1), place)
        scores, cache = encoder_decoder.read(model, tensors(weights), token, position, cache, place)
        assert_close(scores, theirs[:, place])


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 14), (16, 64), (32, 20), (64, 1000)])
@pytest.mark.parametrize("causal", [True, False])
def test_each_distance_falls_into_the_bucket_of_transformers(buckets: int, distance: int, causal: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-1100, 1101)
    model = T5.model_copy(update={"relative_buckets": buckets, "relative_distance": distance})
    theirs = T5Attention._relative_position_bucket(torch.from_numpy(distances), not causal, buckets, distance)
    np.testing.assert_array_equal(blocks.relative_buckets(model, distances, causal=causal), theirs.numpy())
