"""The model against a reference in NumPy, and reading with a cache against reading at once. Axes as in `models.blocks`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import Config, ModelConfig
from trainer.models import attention, blocks, gpt
from trainer.models.blocks import DropoutKey
from trainer.models.parameters import flops_per_token, parameters
from trainer.tasks.language_modeling import LanguageModeling
from trainer.tasks.task import Sums

pytestmark = pytest.mark.usefixtures("tensorflow")

VOCABULARY_SIZE, LENGTH = 23, 12
Arrays = Mapping[str, np.ndarray]

GPT2 = ModelConfig(num_layers=2, num_heads=4, width=16)
LLAMA = ModelConfig(
    num_layers=2,
    num_heads=4,
    num_key_value_heads=2,
    width=16,
    feed_forward_width=24,
    positions="rotary",
    normalization="rms_norm",
    activation="swiglu",
    biases=False,
    tied_output=False,
)
MODELS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "rotary-multi-query-with-biases": GPT2.model_copy(update={"positions": "rotary", "num_key_value_heads": 1}),
    "learned-grouped-query": LLAMA.model_copy(update={"positions": "learned"}),
    "wide-heads-exact-gelu": GPT2.model_copy(update={"width_per_head": 6, "activation": "gelu_erf"}),
    "narrow-heads-gated-gelu": LLAMA.model_copy(update={"width_per_head": 2, "activation": "gated_gelu"}),
    "relu": GPT2.model_copy(update={"activation": "relu"}),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def random_weights(model: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights far from their beginnings, so that no gain or bias can be forgotten without notice."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(float(weight.initializer == "ones"), 0.3, weight.shape).astype(np.float32)
        for name, weight in parameters(model, VOCABULARY_SIZE, LENGTH).items()
    }


def tensors(weights: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(weight) for name, weight in weights.items()}


def loss_sums(model: ModelConfig, weights: Mapping[str, tf.Tensor], inputs: np.ndarray, targets: np.ndarray) -> Sums:
    config = Config.model_validate(
        {
            "run": {"name": "models"},
            "data": {
                "store": "store",
                "train": [{"path": "text.txt"}],
                "sequence_length": LENGTH,
                "tokenizer": {"kind": "character"},
            },
            "model": {"num_layers": 1, "num_heads": 1, "width": 8},
            "optimizer": {"learning_rate": 0.001},
            "train": {"steps": 1, "global_batch_size": 1},
        }
    )
    task = LanguageModeling(config.model_copy(update={"model": model}))
    return task.loss_sums(weights, {"inputs": tf.constant(inputs), "targets": tf.constant(targets)})


def random_tokens(batch: int = 3, length: int = LENGTH, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY_SIZE, (batch, length), np.int32)


# -- The reference: loops over heads, in double precision, written from the papers.


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu": gelu,
    "gated_gelu": gelu,
    "gelu_erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "swiglu": lambda x: x / (1 + np.exp(-x)),
}


def reference_logits(model: ModelConfig, weights: Arrays, tokens_BT: np.ndarray) -> np.ndarray:
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    x = weights["token_embedding"][tokens_BT]
    length = tokens_BT.shape[1]
    if model.positions == "learned":
        x = x + weights["position_embedding"][:length]
    for layer in range(model.num_layers):
        name = f"blocks.{layer}"
        x = x + reference_attention(model, weights, name, reference_norm(model, weights, f"{name}.attention_norm", x))
        hidden = reference_norm(model, weights, f"{name}.feed_forward_norm", x)
        hidden = reference_linear(weights, f"{name}.feed_forward.up", hidden)
        if model.is_gated:
            gate, up = np.split(hidden, 2, -1)
            hidden = ACTIVATIONS[model.activation](gate) * up
        else:
            hidden = ACTIVATIONS[model.activation](hidden)
        x = x + reference_linear(weights, f"{name}.feed_forward.down", hidden)
    x = reference_norm(model, weights, "final_norm", x)
    return x @ weights["token_embedding" if model.tied_output else "output"].T


def reference_norm(model: ModelConfig, weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    if model.normalization == "layer_norm":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.normalization_epsilon) * weights[f"{name}.gain"]
    return x + weights.get(f"{name}.bias", 0.0)


def reference_linear(weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.kernel"] + weights.get(f"{name}.bias", 0.0)


def reference_rotary(x_TW: np.ndarray, base: float) -> np.ndarray:
    """Pairs (i, i + W/2) as complex numbers, turned by position * base^(-2i/W)."""
    half = x_TW.shape[1] // 2
    pairs = x_TW[:, :half] + 1j * x_TW[:, half:]
    turned = pairs * np.exp(1j * np.arange(len(x_TW))[:, None] * base ** (-2 * np.arange(half) / (2 * half)))
    return np.concatenate([turned.real, turned.imag], 1)


def reference_attention(model: ModelConfig, weights: Arrays, name: str, x_BTD: np.ndarray) -> np.ndarray:
    """Each head by itself; grouped queries by repeating the keys and values that they share."""
    joint = reference_linear(weights, f"{name}.attention.query_key_value", x_BTD)
    heads, pairs, width = model.num_heads, model.key_value_heads, model.head_width
    length = x_BTD.shape[1]
    out = np.zeros((*x_BTD.shape[:2], heads * width))
    for row in range(len(x_BTD)):
        parts = [joint[row, :, number * width : (number + 1) * width] for number in range(heads + 2 * pairs)]
        for head in range(heads):
            shared = head * pairs // heads
            query, key, value = parts[head], parts[heads + shared], parts[heads + pairs + shared]
            if model.positions == "rotary":
                query, key = reference_rotary(query, model.rotary_base), reference_rotary(key, model.rotary_base)
            scores = np.where(np.tri(length, dtype=bool), query @ key.T / math.sqrt(width), -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            out[row, :, head * width : (head + 1) * width] = weight / weight.sum(-1, keepdims=True) @ value
    return reference_linear(weights, f"{name}.attention.output", out)


@each_model
def test_logits_are_those_of_a_reference_in_numpy(model: ModelConfig) -> None:
    weights, tokens = random_weights(model), random_tokens()
    ours = gpt.logits(model, tensors(weights), tf.constant(tokens))
    assert ours.dtype == tf.float32 and ours.shape == (3, LENGTH, VOCABULARY_SIZE)
    np.testing.assert_allclose(ours.numpy(), reference_logits(model, weights, tokens), rtol=2e-4, atol=2e-4)


@each_model
def test_a_later_token_does_not_change_earlier_logits(model: ModelConfig) -> None:
    weights, tokens = tensors(random_weights(model)), random_tokens()
    changed = tokens.copy()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY_SIZE
    before = gpt.logits(model, weights, tf.constant(tokens)).numpy()
    after = gpt.logits(model, weights, tf.constant(changed)).numpy()
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (np.abs(before[:, 7:] - after[:, 7:]).max(-1) > 1e-4).all()


@each_model
def test_rows_of_a_batch_do_not_see_each_other(model: ModelConfig) -> None:
    weights, tokens = tensors(random_weights(model)), random_tokens()
    together = gpt.logits(model, weights, tf.constant(tokens)).numpy()
    alone = gpt.logits(model, weights, tf.constant(tokens[1:2])).numpy()
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_grouped_queries_are_repeated_keys_and_values() -> None:
    """A grouped-query model is a multi-head model whose heads' keys and values are copies of one another."""
    weights = random_weights(LLAMA)
    repeated = dict(weights)
    for layer in range(LLAMA.num_layers):
        name = f"blocks.{layer}.attention.query_key_value.kernel"
        query, key, value = np.split(weights[name].reshape(16, 8, 4), (4, 6), axis=1)
        repeated[name] = np.concatenate([query, key.repeat(2, 1), value.repeat(2, 1)], 1).reshape(16, 48)
    multi_head = LLAMA.model_copy(update={"num_key_value_heads": None})
    tokens = tf.constant(random_tokens())
    grouped = gpt.logits(LLAMA, tensors(weights), tokens).numpy()
    np.testing.assert_allclose(grouped, gpt.logits(multi_head, tensors(repeated), tokens).numpy(), rtol=1e-4, atol=1e-5)


def test_rotary_positions_turn_pairs_by_their_angles() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, LENGTH, 8)).astype(np.float32)
    positions = tf.range(LENGTH)[None]
    ours = attention.rotate(tf.constant(x), positions, 10_000.0).numpy()
    expected = np.stack([[reference_rotary(head.astype(np.float64), 10_000.0) for head in row] for row in x])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = (np.random.default_rng(seed).normal(size=(1, 1, 1, 8)).astype(np.float32) for seed in (0, 1))

    def score(position: int, distance: int) -> float:
        turned = attention.rotate(tf.constant(query), tf.constant([[position]]), 10_000.0)
        other = attention.rotate(tf.constant(key), tf.constant([[position - distance]]), 10_000.0)
        return float(tf.reduce_sum(turned * other))

    assert score(5, 3) == pytest.approx(score(100, 3), abs=1e-4)
    assert abs(score(5, 3) - score(5, 1)) > 1e-2


@each_model
def test_reading_token_by_token_gives_the_logits_of_reading_at_once(model: ModelConfig) -> None:
    weights, tokens = tensors(random_weights(model)), random_tokens()
    expected = gpt.logits(model, weights, tf.constant(tokens)).numpy()
    cache = gpt.empty_cache(model, len(tokens), LENGTH, tf.float32)
    for place in range(LENGTH):
        positions = tf.fill((len(tokens), 1), place)
        scores, cache = gpt.read(model, weights, tf.constant(tokens[:, place : place + 1]), positions, cache, place)
        np.testing.assert_allclose(scores.numpy(), expected[:, place], rtol=1e-4, atol=1e-5)


@each_model
def test_prompts_of_unequal_lengths_are_read_as_if_each_were_alone(model: ModelConfig) -> None:
    """Padded in front, then continued token by token, as `predict` does."""
    weights, lengths, prompt_length = tensors(random_weights(model)), [2, 5, 4], 5
    rows = random_tokens()
    prompts = np.zeros((3, prompt_length), np.int32)
    positions = np.zeros((3, prompt_length), np.int32)
    for row, length in enumerate(lengths):
        prompts[row, prompt_length - length :] = rows[row, :length]
        positions[row] = np.arange(prompt_length) - (prompt_length - length)
    cache = gpt.empty_cache(model, 3, prompt_length + 4, tf.float32)
    scores, cache = gpt.read(model, weights, tf.constant(prompts), tf.constant(positions), cache, 0)
    for step in range(5):
        for row, length in enumerate(lengths):
            alone = gpt.logits(model, weights, tf.constant(rows[row : row + 1, : length + step])).numpy()
            np.testing.assert_allclose(scores[row].numpy(), alone[0, -1], rtol=1e-4, atol=1e-4)
        if step < 4:
            place = prompt_length + step
            tokens = np.array([[rows[row, length + step]] for row, length in enumerate(lengths)], np.int32)
            at = np.array([[length + step] for length in lengths], np.int32)
            scores, cache = gpt.read(model, weights, tf.constant(tokens), tf.constant(at), cache, tf.constant(place))


def test_targets_of_minus_one_do_not_count() -> None:
    weights, inputs, targets = random_weights(GPT2), random_tokens(), random_tokens(seed=2)
    targets[0, 5:] = -1
    targets[2] = -1
    loss_sum, num_counted = loss_sums(GPT2, tensors(weights), inputs, targets)
    logits = reference_logits(GPT2, weights, inputs)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    assert float(num_counted) == 5 + LENGTH
    assert float(loss_sum) == pytest.approx(losses[targets >= 0].sum(), rel=1e-5)


def test_a_batch_without_any_target_has_loss_zero_of_zero_tokens() -> None:
    inputs = random_tokens()
    sums = loss_sums(GPT2, tensors(random_weights(GPT2)), inputs, np.full_like(inputs, -1))
    assert [float(value) for value in sums] == [0.0, 0.0]


# -- Dropout


def mask(first_row: int, num_rows: int, *, seed: int = 1, step: int = 5, site: int = 0, rate: float = 0.25) -> np.ndarray:
    return masked(tf.constant(first_row, tf.int64), num_rows, seed, step, site, rate).numpy()


def masked(first_row: tf.Tensor, num_rows: int, seed: int = 1, step: int = 5, site: int = 0, rate: float = 0.25) -> tf.Tensor:
    key = DropoutKey(tf.constant([seed, step], tf.int64), first_row)
    return blocks.dropout(tf.ones((num_rows, 5, 7)), rate, key, site)


def test_dropout_masks_do_not_depend_on_how_rows_fall_on_micro_batches() -> None:
    whole = mask(0, 8)
    for num_rows in (1, 2, 4):
        parts = [mask(first, num_rows) for first in range(0, 8, num_rows)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_dropout_masks_differ_by_row_step_site_and_seed() -> None:
    base = mask(0, 4)
    others = [mask(4, 4), mask(0, 4, step=6), mask(0, 4, site=1), mask(0, 4, seed=2)]
    assert all((base != other).mean() > 0.2 for other in others)
    assert all((base[0] != base[row]).mean() > 0.05 for row in range(1, 4))


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    kept = mask(0, 4000, rate=0.25)
    assert set(np.unique(kept).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}
    deviation = math.sqrt(0.25 * 0.75 / kept.size)
    assert abs((kept == 0).mean() - 0.25) < 5 * deviation
    assert kept.mean() == pytest.approx(1.0, abs=5 * deviation / 0.75)
    # Neither places within a row nor rows lean to one side.
    assert np.abs((kept == 0).mean(0) - 0.25).max() < 6 * math.sqrt(0.25 * 0.75 / 4000)


def test_dropout_masks_of_neighbouring_rows_and_steps_do_not_correlate() -> None:
    rows = (mask(0, 2000) == 0).reshape(2000, -1) - 0.25
    assert abs((rows[1:] * rows[:-1]).mean() / (0.25 * 0.75)) < 5 / math.sqrt(rows.size)
    later = (mask(0, 2000, step=6) == 0).reshape(2000, -1) - 0.25
    assert abs((rows * later).mean() / (0.25 * 0.75)) < 5 / math.sqrt(rows.size)


def test_dropout_masks_are_the_same_whoever_compiles_them() -> None:
    compiled = tf.function(lambda row: masked(row, 4), jit_compile=True, autograph=False)
    np.testing.assert_array_equal(compiled(tf.constant(3, tf.int64)).numpy(), mask(3, 4))


def test_dropout_happens_only_in_training() -> None:
    model = GPT2.model_copy(update={"dropout": 0.5})
    weights, tokens = tensors(random_weights(model)), tf.constant(random_tokens())
    np.testing.assert_array_equal(gpt.logits(model, weights, tokens), gpt.logits(GPT2, weights, tokens))
    key = DropoutKey(tf.constant([1, 0], tf.int64), tf.constant(0, tf.int64))
    assert np.abs(gpt.logits(model, weights, tokens, key) - gpt.logits(GPT2, weights, tokens)).max() > 0.1


# -- What a model is made of


def test_the_parameters_of_gpt2_and_tinyllama_are_as_many_as_published() -> None:
    gpt2 = ModelConfig(num_layers=12, num_heads=12, width=768)
    assert sum(each.num_elements for each in parameters(gpt2, 50_257, 1024).values()) == 124_439_808
    tinyllama = LLAMA.model_copy(
        update={
            "num_layers": 22,
            "num_heads": 32,
            "num_key_value_heads": 4,
            "width": 2048,
            "feed_forward_width": 5632,
        }
    )
    assert sum(each.num_elements for each in parameters(tinyllama, 32_000, 2048).values()) == 1_100_048_384


@each_model
def test_every_parameter_is_used_and_has_a_gradient(model: ModelConfig) -> None:
    weights = tensors(random_weights(model))
    with tf.GradientTape() as tape:
        tape.watch(list(weights.values()))
        inputs, targets = random_tokens(), random_tokens(seed=2)
        loss_sum, _ = loss_sums(model, weights, inputs, targets)
    gradients = tape.gradient(loss_sum, weights)
    for name, gradient in gradients.items():
        assert gradient is not None and np.abs(gradient.numpy()).max() > 0, name
        assert gradient.shape == weights[name].shape


def test_decay_is_for_matrices_only() -> None:
    decaying = {name for name, weight in parameters(GPT2, VOCABULARY_SIZE, LENGTH).items() if weight.decays}
    assert decaying == {name for name in parameters(GPT2, VOCABULARY_SIZE, LENGTH) if name.endswith(("kernel", "embedding"))}


def test_operations_a_token_are_six_a_weight_and_attention() -> None:
    """GPT-2 124M by hand: 12 blocks of 12 * 768^2 weights in matrices, and the output; 12 * 12 * 768 * 1024 in attention."""
    gpt2 = ModelConfig(num_layers=12, num_heads=12, width=768)
    by_hand = 6 * (12 * 12 * 768**2 + 50_257 * 768) + 12 * 12 * 768 * 1024
    assert flops_per_token(gpt2, 50_257, 1024) == by_hand
    untied = gpt2.model_copy(update={"tied_output": False})
    assert flops_per_token(untied, 50_257, 1024) == by_hand


@pytest.mark.parametrize("precision", [tf.bfloat16, tf.float16])
def test_half_precision_is_close_to_float32(precision: tf.DType) -> None:
    weights, tokens = random_weights(GPT2), random_tokens()
    narrow = {name: tf.cast(weight, precision) for name, weight in weights.items()}
    logits = gpt.logits(GPT2, narrow, tf.constant(tokens))
    assert logits.dtype == tf.float32
    expected = reference_logits(GPT2, weights, tokens)
    assert np.abs(logits.numpy() - expected).max() < 0.05 * np.abs(expected).max()
