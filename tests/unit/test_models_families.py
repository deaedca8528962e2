"""What holds for decoders, encoders and encoder-decoders alike, without another implementation beside them.

Axes as in `models.blocks`; S is the time of the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import bert, blocks, encoder_decoder, gpt
from trainer.models.blocks import DropoutKey
from trainer.models.parameters import parameters

pytestmark = pytest.mark.usefixtures("tensorflow")

VOCABULARY_SIZE, LENGTH, TARGET_LENGTH = 23, 14, 10
Arrays = Mapping[str, np.ndarray]
Tensors = Mapping[str, tf.Tensor]

GPT = ModelConfig(num_layers=2, num_heads=4, width=16)
BERT = ModelConfig(family="bert", num_layers=2, num_heads=4, width=16, width_per_head=6)
T5 = ModelConfig(
    family="t5", num_layers=2, num_decoder_layers=3, num_heads=4, width=16, relative_buckets=8, relative_distance=9
)
PLAIN = ModelConfig(family="encoder_decoder", num_layers=2, num_heads=4, width=16)
ROTARY = ModelConfig(
    family="encoder_decoder",
    num_layers=3,
    num_decoder_layers=2,
    num_heads=4,
    num_key_value_heads=2,
    width=16,
    width_per_head=6,
    positions="rotary",
    normalization="rms_norm",
    activation="swiglu",
    biases=False,
    tied_output=False,
)
ENCODER_DECODERS = {
    "t5": T5,
    "t5-gated-untied": T5.model_copy(update={"activation": "gated_gelu", "tied_output": False}),
    "learned": PLAIN,
    "sinusoidal": PLAIN.model_copy(update={"positions": "sinusoidal"}),
    "rotary-grouped-query": ROTARY,
}
each_encoder_decoder = pytest.mark.parametrize("model", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS.keys())
ALL = {"gpt": GPT, "gpt-rotary": GPT.model_copy(update={"positions": "rotary"}), "bert": BERT, **ENCODER_DECODERS}
each_model = pytest.mark.parametrize("model", ALL.values(), ids=ALL.keys())


def random_weights(model: ModelConfig, seed: int = 0) -> dict[str, tf.Tensor]:
    """Weights far from their beginnings, so that no gain or bias can be forgotten without notice."""
    generator = np.random.default_rng(seed)
    return {
        name: tf.constant(generator.normal(float(weight.initializer == "ones"), 0.3, weight.shape), tf.float32)
        for name, weight in parameters(model, VOCABULARY_SIZE, LENGTH, TARGET_LENGTH).items()
    }


def random_tokens(batch: int, length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY_SIZE, (batch, length), np.int32)


def packed(lengths: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions [1, T] of a row that holds texts of these lengths, and padding after them."""
    segments, positions = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    for number, (begin, size) in enumerate(zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True)):
        segments[0, begin : begin + size], positions[0, begin : begin + size] = number + 1, np.arange(size)
    return segments, positions


def rows(batch: int = 3) -> dict[str, np.ndarray]:
    """Features of rows that hold two texts each, and padding."""
    source_segments, source_positions = packed([7, 4], LENGTH)
    target_segments, target_positions = packed([3, 5], TARGET_LENGTH)
    return {
        "source": random_tokens(batch, LENGTH),
        "source_segments": source_segments.repeat(batch, 0),
        "source_positions": source_positions.repeat(batch, 0),
        "inputs": random_tokens(batch, TARGET_LENGTH, seed=2),
        "target_segments": target_segments.repeat(batch, 0),
        "target_positions": target_positions.repeat(batch, 0),
    }


def compute(model: ModelConfig, weights: Tensors, features: Arrays, key: DropoutKey | None = None) -> tf.Tensor:
    """Logits of the targets, or, where the model has no decoder that looks at a source, vectors or logits of the source."""
    given = {name: tf.convert_to_tensor(value) for name, value in features.items()}
    source, source_segments, source_positions = (given[name] for name in ("source", "source_segments", "source_positions"))
    if model.family == "gpt":
        return gpt.logits(model, weights, source, key, source_segments, source_positions)
    if model.family == "bert":
        return bert.hidden_states(model, weights, source, source_segments, positions_BT=source_positions, dropout_key=key)
    encoded = encoder_decoder.encode(model, weights, source, source_segments, source_positions, key)
    segments = (given["target_segments"], encoded, source_segments)
    return encoder_decoder.logits(model, weights, given["inputs"], *segments, given["target_positions"], key)


def is_real(model: ModelConfig, features: Arrays) -> np.ndarray:
    return features["target_segments" if model.family in ("t5", "encoder_decoder") else "source_segments"] > 0


@each_model
def test_texts_packed_in_a_row_are_what_they_are_alone(model: ModelConfig) -> None:
    weights, together = random_weights(model), rows(1)
    ours = compute(model, weights, together).numpy()
    for text in (1, 2):
        alone = {
            name: value[together["source_segments" if name.startswith("source") else "target_segments"] == text][None]
            for name, value in together.items()
        }
        alone["source_segments"], alone["target_segments"] = (
            np.minimum(alone[f"{side}_segments"], 1) for side in ("source", "target")
        )
        expected = compute(model, weights, alone).numpy()
        at = together["source_segments" if model.family in ("gpt", "bert") else "target_segments"] == text
        np.testing.assert_allclose(ours[at][None], expected, rtol=1e-4, atol=1e-5)


@each_model
def test_padding_counts_for_nothing(model: ModelConfig) -> None:
    weights, features = random_weights(model), rows()
    before = compute(model, weights, features).numpy()
    features["source"] = np.where(features["source_segments"] > 0, features["source"], 5)
    features["inputs"] = np.where(features["target_segments"] > 0, features["inputs"], 5)
    after = compute(model, weights, features).numpy()
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(before[is_real(model, features)], after[is_real(model, features)])


@each_encoder_decoder
def test_positions_that_are_not_given_count_from_zero(model: ModelConfig) -> None:
    weights, features = random_weights(model), {name: tf.constant(value) for name, value in rows().items()}
    ones, target_ones = tf.ones_like(features["source"]), tf.ones_like(features["inputs"])
    counted = [tf.range(length)[None] + tf.zeros((3, 1), tf.int32) for length in (LENGTH, TARGET_LENGTH)]
    encoded = encoder_decoder.encode(model, weights, features["source"], ones)
    given = encoder_decoder.encode(model, weights, features["source"], ones, counted[0])
    np.testing.assert_allclose(encoded, given, rtol=1e-5, atol=1e-5)
    arguments = (features["inputs"], target_ones, encoded, ones)
    ours, expected = (encoder_decoder.logits(model, weights, *arguments, each) for each in (None, counted[1]))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@each_encoder_decoder
def test_a_target_sees_its_source_and_what_it_has_so_far(model: ModelConfig) -> None:
    weights, features = random_weights(model), rows(1)
    before = compute(model, weights, features).numpy()[0]
    later = features | {"inputs": features["inputs"].copy()}
    later["inputs"][0, 5] = (later["inputs"][0, 5] + 1) % VOCABULARY_SIZE  # the second text's third token
    changed = np.abs(compute(model, weights, later).numpy()[0] - before).max(-1) > 1e-4
    np.testing.assert_array_equal(changed[:8], [False] * 5 + [True] * 3)
    other = features | {"source": features["source"].copy()}
    other["source"][0, 8] = (other["source"][0, 8] + 1) % VOCABULARY_SIZE  # in the second text
    changed = np.abs(compute(model, weights, other).numpy()[0] - before).max(-1) > 1e-5
    np.testing.assert_array_equal(changed[:8], [False] * 3 + [True] * 5)


def start(model: ModelConfig, weights: Tensors, num_places: int) -> tuple[encoder_decoder.Cache, Callable[..., np.ndarray]]:
    """A cache for three sources of unequal lengths, and the whole computation of targets [3, T] beside it."""
    source, segments = tf.constant(random_tokens(3, LENGTH)), tf.constant(np.tri(3, LENGTH, 6, np.int32))
    encoded = encoder_decoder.encode(model, weights, source, segments)

    def whole(inputs: np.ndarray) -> np.ndarray:
        arguments = (tf.constant(inputs), tf.ones_like(inputs), encoded, segments)
        return encoder_decoder.logits(model, weights, *arguments).numpy()

    return encoder_decoder.start_cache(model, weights, encoded, segments, num_places, tf.float32), whole


@each_encoder_decoder
def test_writing_token_by_token_gives_the_logits_of_the_whole(model: ModelConfig) -> None:
    weights, inputs = random_weights(model), random_tokens(3, TARGET_LENGTH)
    cache, whole = start(model, weights, TARGET_LENGTH + 2)
    expected = whole(inputs)

    @tf.function(autograph=False)
    def read(token: tf.Tensor, cache: encoder_decoder.Cache, place: tf.Tensor) -> tuple[tf.Tensor, encoder_decoder.Cache]:
        return encoder_decoder.read(model, weights, token, tf.fill((3, 1), place), cache, place)

    for place in range(TARGET_LENGTH):
        scores, cache = read(tf.constant(inputs[:, place : place + 1]), cache, tf.constant(place))
        np.testing.assert_allclose(scores, expected[:, place], rtol=1e-4, atol=1e-5)


@each_encoder_decoder
def test_beginnings_of_unequal_lengths_are_read_as_if_each_were_alone(model: ModelConfig) -> None:
    """Several tokens at once, padded in front, then one more."""
    weights, tokens, lengths = random_weights(model), random_tokens(3, TARGET_LENGTH), [2, 5, 4]
    cache, whole = start(model, weights, TARGET_LENGTH)
    beginnings, positions = np.zeros((3, 5), np.int32), np.zeros((3, 5), np.int32)
    for row, length in enumerate(lengths):
        beginnings[row, 5 - length :], positions[row] = tokens[row, :length], np.arange(5) - (5 - length)
    expected = whole(tokens)
    scores, cache = encoder_decoder.read(model, weights, tf.constant(beginnings), tf.constant(positions), cache, 0)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(scores[row], expected[row, length - 1], rtol=1e-4, atol=1e-5)
    following = tf.constant([[tokens[row, length]] for row, length in enumerate(lengths)])
    scores, _ = encoder_decoder.read(model, weights, following, tf.constant(lengths)[:, None], cache, tf.constant(5))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(scores[row], expected[row, length], rtol=1e-4, atol=1e-5)


@each_encoder_decoder
def test_a_cache_is_reordered_by_taking_rows(model: ModelConfig) -> None:
    weights, tokens = random_weights(model), random_tokens(3, 3)
    cache, _ = start(model, weights, 3)

    def read(cache: encoder_decoder.Cache, token: np.ndarray, place: int) -> tuple[tf.Tensor, encoder_decoder.Cache]:
        return encoder_decoder.read(model, weights, tf.constant(token[:, None]), tf.fill((3, 1), place), cache, place)

    _, cache = read(cache, tokens[:, 0], 0)
    scores, _ = read(cache, tokens[:, 1], 1)
    order = [2, 2, 0]
    reordered = tf.nest.map_structure(lambda part: tf.gather(part, order), cache)
    again, _ = read(reordered, tokens[order, 1], 1)
    np.testing.assert_allclose(again, scores.numpy()[order], rtol=1e-5, atol=1e-6)


# -- Training


def loss_of(model: ModelConfig, weights: Tensors, features: Arrays) -> tf.Tensor:
    """A smooth function of all that is computed for real tokens."""
    computed = compute(model, weights, features)
    mix = np.random.default_rng(3).normal(size=computed.shape) * is_real(model, features)[..., None]
    return tf.reduce_sum(tf.tanh(computed) * tf.constant(mix, tf.float32))


@each_model
def test_every_weight_has_a_dense_gradient(model: ModelConfig) -> None:
    weights = random_weights(model)
    with tf.GradientTape() as tape:
        tape.watch(list(weights.values()))
        loss = loss_of(model, weights, rows())
    for name, gradient in tape.gradient(loss, weights).items():
        assert isinstance(gradient, tf.Tensor) and not isinstance(gradient, tf.IndexedSlices), name
        assert gradient.shape == weights[name].shape
        # With types all 0, one row of the two has a gradient.
        assert np.abs(gradient.numpy()).max() > 0, name


@each_model
def test_gradients_are_the_slopes_of_the_loss(model: ModelConfig) -> None:
    # ReLU has kinks, at which a difference is no slope.
    model = model.model_copy(update={"activation": "gelu"}) if model.activation == "relu" else model
    weights, features, step = random_weights(model), rows(2), 2e-3
    with tf.GradientTape() as tape:
        tape.watch(list(weights.values()))
        loss = loss_of(model, weights, features)
    gradients = tape.gradient(loss, weights)
    compiled = tf.function(lambda moved: loss_of(model, moved, features), autograph=False)
    for name in weights:
        direction = gradients[name] / tf.norm(gradients[name])
        above, below = (float(compiled({**weights, name: weights[name] + sign * step * direction})) for sign in (1, -1))
        assert (above - below) / (2 * step) == pytest.approx(float(tf.norm(gradients[name])), rel=0.05, abs=0.02), name


@each_model
def test_dropout_happens_only_with_a_key_and_follows_the_rows(model: ModelConfig) -> None:
    weights, features, dropped = random_weights(model), rows(4), model.model_copy(update={"dropout": 0.3})

    def key(first_row: int) -> DropoutKey:
        return DropoutKey(tf.constant([1, 7], tf.int64), tf.constant(first_row, tf.int64))

    without = compute(model, weights, features).numpy()
    np.testing.assert_array_equal(compute(dropped, weights, features), without)
    together = compute(dropped, weights, features, key(8)).numpy()
    assert np.abs(together - without).max() > 0.1
    half = {name: value[2:] for name, value in features.items()}
    np.testing.assert_allclose(compute(dropped, weights, half, key(10)), together[2:], rtol=1e-4, atol=1e-5)


@each_model
def test_no_two_dropouts_share_a_mask(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    sites, dropout = [], blocks.dropout

    def record(x: tf.Tensor, rate: float, key: DropoutKey | None, site: int) -> tf.Tensor:
        sites.extend([site] if key is not None else [])
        return dropout(x, rate, key, site)

    monkeypatch.setattr(blocks, "dropout", record)
    key = DropoutKey(tf.constant([1, 7], tf.int64), tf.constant(0, tf.int64))
    compute(model, random_weights(model), rows(1), key)
    per_layer = {"t5": (4, 6, 4), "encoder_decoder": (3, 5, 2)}.get(model.family, (3, 0, 1))
    layers = (model.num_layers, model.decoder_layers, 1)
    assert len(sites) == len(set(sites)) == sum(count * each for count, each in zip(layers, per_layer, strict=True))


@each_model
def test_half_precision_is_close_to_float32(model: ModelConfig) -> None:
    weights, features = random_weights(model), rows()
    narrow = {name: tf.cast(weight, tf.bfloat16) for name, weight in weights.items()}
    real = is_real(model, features)
    ours, expected = (tf.cast(compute(model, each, features), tf.float32).numpy()[real] for each in (narrow, weights))
    assert np.abs(ours - expected).max() < 0.1 * np.abs(expected).max()


@each_model
def test_a_compiled_model_is_the_model(model: ModelConfig) -> None:
    weights, features = random_weights(model), rows()
    compiled = tf.function(lambda: compute(model, weights, features), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(), compute(model, weights, features), rtol=1e-3, atol=1e-4)


@each_model
def test_rows_may_be_as_many_and_as_long_as_they_come(model: ModelConfig) -> None:
    """One graph for all sizes, as an exported model has it."""
    weights, features = random_weights(model), rows()
    any_size = {name: tf.TensorSpec((None, None), tf.int32) for name in features}
    graph = tf.function(lambda given: compute(model, weights, given), autograph=False, input_signature=[any_size])
    for batch, length in ((3, 14), (1, 9)):
        part = {name: value[:batch, :length] for name, value in features.items()}
        ours = graph({name: tf.constant(value) for name, value in part.items()})
        np.testing.assert_allclose(ours, compute(model, weights, part), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [GPT, T5, ROTARY], ids=["gpt", "t5", "rotary"])
def test_a_cache_may_be_of_any_size(model: ModelConfig) -> None:
    weights, tokens = random_weights(model), random_tokens(3, 9)
    any_size = tf.TensorSpec((None, None), tf.int32)

    @tf.function(autograph=False, input_signature=[any_size, any_size])
    def last_scores(source: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Reads all but the last of the inputs at once, then that."""
        batch, time = blocks.sizes(inputs)
        positions = tf.range(time)[None] + tf.zeros((batch, 1), tf.int32)
        if model.family == "gpt":
            read, cache = gpt.read, gpt.empty_cache(model, batch, time, tf.float32)
        else:
            ones = tf.ones_like(source)
            encoded = encoder_decoder.encode(model, weights, source, ones)
            read = encoder_decoder.read
            cache = encoder_decoder.start_cache(model, weights, encoded, ones, time, tf.float32)
        _, cache = read(model, weights, inputs[:, :-1], positions[:, :-1], cache, 0)
        return read(model, weights, inputs[:, -1][:, None], positions[:, -1][:, None], cache, time - 1)[0]

    for batch, length in ((3, 9), (2, 6)):
        source, inputs = (tf.constant(each[:batch, :length]) for each in (random_tokens(3, LENGTH, seed=2), tokens))
        if model.family == "gpt":
            whole = gpt.logits(model, weights, inputs)
        else:
            ones = tf.ones_like(source)
            encoded = encoder_decoder.encode(model, weights, source, ones)
            whole = encoder_decoder.logits(model, weights, inputs, tf.ones_like(inputs), encoded, ones)
        np.testing.assert_allclose(last_scores(source, inputs), whole[:, -1], rtol=1e-4, atol=1e-5)


@each_encoder_decoder
def test_training_begins_at_about_the_loss_of_guessing(model: ModelConfig) -> None:
    """At a usual width, with weights as they begin. Where the output is the embeddings, a token's own score is higher."""
    model = model.model_copy(update={"width": 256, "num_heads": 8, "width_per_head": 32, "num_key_value_heads": None})
    weights = {
        name: tf.ones(weight.shape)
        if weight.initializer == "ones"
        else tf.random.stateless_normal(weight.shape, (1, number)) * weight.standard_deviation
        for number, (name, weight) in enumerate(parameters(model, 500, LENGTH, TARGET_LENGTH).items())
    }
    scores = compute(model, weights, rows()).numpy().reshape(-1, 500)
    loss = (np.log(np.exp(scores).sum(-1)) - scores.mean(-1)).mean()
    assert math.log(500) <= loss < math.log(500) + (2.0 if model.tied_output else 0.7)
    assert scores.std() > 0.1


# -- Blocks


def test_sinusoidal_positions_are_the_papers() -> None:
    ours = blocks.sinusoidal_positions(tf.constant([[0, 3, 50]]), 8).numpy()
    assert ours.shape == (1, 3, 8)
    for place, position in enumerate((0, 3, 50)):
        for index in range(4):
            angle = position / 10_000 ** (2 * index / 8)
            assert ours[0, place, index] == pytest.approx(math.sin(angle), abs=1e-5)
            assert ours[0, place, 4 + index] == pytest.approx(math.cos(angle), abs=1e-5)
    assert blocks.sinusoidal_positions(tf.constant([[1]]), 5).shape == (1, 1, 5)
