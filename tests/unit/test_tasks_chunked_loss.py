"""The loss in chunks of positions: what NumPy computes of all logits, in each precision and by either compiler; and no
tensor as large as all logits.

Axes: N positions, D width, V tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.task_examples import example_config
from tests.unit.test_tasks_packing import TOKENIZER, example_arrays, example_weights
from trainer.config import Config
from trainer.models.apart import compiled_apart
from trainer.models.blocks import DropoutKey, TokenOutput
from trainer.tasks import chunked_loss
from trainer.tasks.choice import choose_task
from trainer.tasks.losses import evaluate_output, output_loss_sums

pytestmark = pytest.mark.usefixtures("tensorflow")

BATCH, LENGTH, WIDTH, VOCABULARY_SIZE = 2, 13, 8, 37
each_compiler = pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])

Arrays = dict[str, np.ndarray]


def example(seed: int = 0, counted: float = 0.7) -> Arrays:
    """Vectors [B, T, D], a table, a bias, and targets of which so many count."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, VOCABULARY_SIZE, (BATCH, LENGTH), np.int32)
    targets[generator.random(targets.shape) >= counted] = -1
    return {
        "vectors": generator.normal(0.0, 1.0, (BATCH, LENGTH, WIDTH)).astype(np.float32),
        "table": generator.normal(0.0, 0.5, (VOCABULARY_SIZE, WIDTH)).astype(np.float32),
        "bias": generator.normal(0.0, 0.5, VOCABULARY_SIZE).astype(np.float32),
        "targets": targets,
    }


def reference(arrays: Mapping[str, np.ndarray], smoothing: float) -> list[np.ndarray]:
    """The loss sum and its gradients by vectors, table and bias, of all logits at once, float64."""
    x_ND, table_VD, bias_V = (arrays[name].astype(np.float64) for name in ("vectors", "table", "bias"))
    x_ND, targets_N = x_ND.reshape(-1, WIDTH), arrays["targets"].reshape(-1)
    counted_N1 = (targets_N >= 0)[:, None]
    logits_NV = x_ND @ table_VD.T + bias_V
    logarithms_NV = logits_NV - np.log(np.exp(logits_NV).sum(-1, keepdims=True))
    wanted_NV = (1.0 - smoothing) * np.eye(VOCABULARY_SIZE)[np.maximum(targets_N, 0)] + smoothing / VOCABULARY_SIZE
    by_logits_NV = (np.exp(logarithms_NV) - wanted_NV) * counted_N1
    loss = -(wanted_NV * logarithms_NV * counted_N1).sum()
    by_vectors = (by_logits_NV @ table_VD).reshape(arrays["vectors"].shape)
    return [np.array(loss), by_vectors, by_logits_NV.T @ x_ND, by_logits_NV.sum(0)]


def computed(
    arrays: Mapping[str, np.ndarray],
    *,
    chunk: int = 7,
    smoothing: float = 0.0,
    xla: bool = False,
    dtype: Any = tf.float32,
    scale: float | None = None,
) -> list[np.ndarray]:
    """Loss sum and gradients, as the step takes them; a scale is taken off again."""

    @tf.function(jit_compile=xla, autograph=False)
    def compute(values: list[tf.Tensor], targets: tf.Tensor) -> list[tf.Tensor]:
        loss_scale = None if scale is None else tf.constant(scale)
        with tf.GradientTape() as tape:
            tape.watch(values)
            output = TokenOutput(*(tf.cast(value, dtype) for value in values))
            loss = chunked_loss.loss_sum(output, targets, chunk, smoothing, loss_scale)
            scaled = loss if loss_scale is None else loss * loss_scale
        return [loss, *tape.gradient(scaled, values)]

    values = [tf.constant(arrays[name]) for name in ("vectors", "table", "bias")]
    loss, *gradients = (value.numpy() for value in compute(values, tf.constant(arrays["targets"])))
    return [loss, *(gradient / (scale or 1.0) for gradient in gradients)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """By the largest number of each."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1e-30))


@each_compiler
@pytest.mark.parametrize(("chunk", "smoothing"), [(7, 0.0), (7, 0.1), (13, 0.1), (1, 0.0)])
def test_loss_and_gradients_are_those_of_all_logits(chunk: int, smoothing: float, xla: bool) -> None:
    arrays = example()
    assert_close(computed(arrays, chunk=chunk, smoothing=smoothing, xla=xla), reference(arrays, smoothing), 1e-6)


def test_without_a_target_that_counts_the_loss_and_its_gradients_are_zero() -> None:
    for found in computed(example(counted=0.0)):
        assert not found.any()


def test_in_bfloat16_they_are_so_to_its_rounding() -> None:
    arrays = example()
    narrow = {name: tf.cast(tf.cast(value, tf.bfloat16), value.dtype).numpy() for name, value in arrays.items() if value.ndim}
    narrow["targets"] = arrays["targets"]
    assert_close(computed(narrow, dtype=tf.bfloat16), reference(narrow, 0.0), 2**-6)


@each_compiler
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [None, 7])
def test_in_bfloat16_rows_that_fit_the_products_change_nothing(
    chunk: int | None, smoothing: float, apart: bool, xla: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, sizes = example(), []
    matmul = tf.matmul

    def watched(a: tf.Tensor, b: tf.Tensor, **options: Any) -> tf.Tensor:
        sizes.append(b.shape[0])
        return matmul(a, b, **options)

    monkeypatch.setattr(tf, "matmul", watched)

    @tf.function(jit_compile=xla, autograph=False)
    def compute(values: list[tf.Tensor], targets: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape, compiled_apart(apart):
            tape.watch(values)
            output = TokenOutput(*(tf.cast(value, tf.bfloat16) for value in values))
            loss, _ = output_loss_sums(language_modeling(chunk), output, targets, smoothing)
        return [loss, *tape.gradient(loss, values)]

    given = {name: tf.cast(tf.cast(value, tf.bfloat16), value.dtype).numpy() for name, value in arrays.items()}
    values = [tf.constant(given[name]) for name in ("vectors", "table", "bias")]
    found = [each.numpy() for each in compute(values, tf.constant(arrays["targets"]))]
    assert_close(found, reference(given | {"targets": arrays["targets"]}, smoothing), 2**-6)
    assert 64 in sizes and VOCABULARY_SIZE not in sizes


@each_compiler
def test_the_loss_scale_keeps_what_is_small_in_float16(xla: bool) -> None:
    """Half of the tokens are so unlikely that their gradients are below float16's least number, 6e-8."""
    arrays = example(counted=1.0)
    arrays["bias"][: VOCABULARY_SIZE // 2] = -20.0
    arrays["targets"] = np.maximum(arrays["targets"], VOCABULARY_SIZE // 2)
    expected = reference(arrays, 0.0)[2][: VOCABULARY_SIZE // 2]
    assert 0.0 < np.abs(expected).max() < 6e-8
    kept = computed(arrays, dtype=tf.float16, scale=2.0**15, xla=xla)[2][: VOCABULARY_SIZE // 2]
    np.testing.assert_allclose(kept, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert not computed(arrays, dtype=tf.float16, xla=xla)[2][: VOCABULARY_SIZE // 2].any()


@each_compiler
def test_an_evaluation_in_chunks_finds_what_one_of_all_logits_finds(xla: bool) -> None:
    arrays = example(seed=4)
    output = TokenOutput(*(tf.constant(arrays[name]) for name in ("vectors", "table", "bias")))

    @tf.function(jit_compile=xla, autograph=False)
    def compute(targets: tf.Tensor) -> tuple[tf.Tensor, ...]:
        (loss_sum, count), likeliest = evaluate_output(language_modeling(7), output, targets)
        return loss_sum, count, likeliest

    loss_sum, count, likeliest = (value.numpy() for value in compute(tf.constant(arrays["targets"])))
    is_counted = arrays["targets"] >= 0
    scores = arrays["vectors"] @ arrays["table"].T + arrays["bias"]
    assert loss_sum == pytest.approx(float(reference(arrays, 0.0)[0]), rel=1e-6)
    assert count == is_counted.sum()
    np.testing.assert_array_equal(likeliest[is_counted], scores.argmax(-1)[is_counted])


def language_modeling(chunk: int | str | None, recompute: str = "none") -> Config:
    config = example_config("language_modeling", "gpt", train={"loss_chunk_tokens": chunk})
    return config.model_copy(update={"model": config.model.model_copy(update={"recompute": recompute})})


def test_chunks_are_made_where_all_scores_would_take_much() -> None:
    assert language_modeling("auto").loss_chunk(4_096, 50_257) is None  # 0.8 GiB
    assert language_modeling("auto").loss_chunk(16_384, 30_000) == 2**27 // (4 * 30_000)
    assert language_modeling("auto").loss_chunk(8_192, 250_000) == 1_024
    assert language_modeling(None).loss_chunk(10**9, 10**6) is None
    assert language_modeling(100).loss_chunk(101, 10) == 100
    assert language_modeling(100).loss_chunk(100, 10) is None


@pytest.mark.parametrize(
    ("num_positions", "expected"),
    [(1_024, None), (2_048, 1_024), (6_144, 768), (8_192, 1_024), (10_000, 1_000), (10_007, 770)],
)
def test_chunks_that_could_not_be_smaller_are_of_one_size(num_positions: int, expected: int | None) -> None:
    assert language_modeling("auto", "blocks").loss_chunk(num_positions, 50_257) == expected


def test_chunks_are_smaller_where_blocks_are_recomputed() -> None:
    assert language_modeling("auto", "blocks").loss_chunk(2_048, 8_192) is None  # 64 MiB
    assert language_modeling("auto", "blocks").loss_chunk(4_096, 8_192) == 1_024
    assert language_modeling("auto", "blocks").loss_chunk(8_192, 2_500) == 2**25 // (4 * 2_500)
    assert language_modeling(None, "blocks").loss_chunk(10**9, 10**6) is None


def largest_tensor(chunk: int | None, xla: bool) -> int:
    """The most elements of a tensor in the whole graph of loss and gradients, loops included."""

    @tf.function(jit_compile=True, autograph=False)
    def compute(vectors: tf.Tensor, table: tf.Tensor, targets: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([vectors, table])
            loss, _ = output_loss_sums(language_modeling(chunk), TokenOutput(vectors, table), targets, 0.1)
        return tape.gradient(loss, [vectors, table])

    arrays = example()
    given = [tf.constant(arrays[name]) for name in ("vectors", "table", "targets")]
    # What TensorFlow gave to XLA, and what XLA made of it.
    text = compute.experimental_get_compiler_ir(*given)(stage="optimized_hlo" if xla else "hlo")
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@each_compiler
def test_no_tensor_is_as_large_as_all_logits(xla: bool) -> None:
    all_logits = BATCH * LENGTH * VOCABULARY_SIZE
    assert largest_tensor(None, xla) >= all_logits
    assert largest_tensor(7, xla) <= max(7, WIDTH) * VOCABULARY_SIZE


TASKS: list[tuple[str, str, dict[str, Any]]] = [
    ("language_modeling", "gpt", {"pack": "best_fit"}),
    ("masked_language_modeling", "bert", {"pack": "best_fit", "masking": {"rate": 0.3}}),
    ("translation", "gpt", {"pack": True, "prompt": "{source} beta"}),
    ("translation", "encoder_decoder", {"pack": True, "target_length": 20}),
    ("summarization", "t5", {"pack": True, "target_length": 20}),
]


@pytest.mark.parametrize(("task", "family", "data"), TASKS, ids=[f"{task}-{family}" for task, family, _ in TASKS])
def test_a_task_in_chunks_has_the_loss_gradients_and_outputs_of_all_at_once(
    task: str, family: str, data: dict[str, Any]
) -> None:
    found = []
    for chunk in (None, 17):
        config = example_config(task, family, train={"loss_chunk_tokens": chunk, "label_smoothing": 0.1}, **data)
        weights = example_weights(tf, config)
        features = {name: tf.constant(value) for name, value in example_arrays(config).items()}
        key = DropoutKey(tf.constant([5, 0], tf.int64), tf.constant(0, tf.int64))
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss_sum, count = choose_task(config).loss_sums(weights, features, key)
        gradients = tape.gradient(loss_sum, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        (evaluated, _), outputs = choose_task(config).evaluate(weights, features)
        found.append([each.numpy() for each in (loss_sum, count, evaluated, *gradients.values(), *outputs.values())])
        assert features["targets"].shape.num_elements() * TOKENIZER.vocabulary_size < 2**28  # `auto` would not have chunks
    assert_close(found[1], found[0], 3e-6)
    assert found[0][1] > 0
