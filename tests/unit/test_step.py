"""One update: sums and one division, however the batch is divided, in each precision and by either compiler.

Axes: S steps, G rows of the global batch, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.toy_training import NUM_STEPS, TWO_REPLICAS, VOCABULARY_SIZE, Training, batches_SGT, config, dataset, train
from trainer.config import Config, plan_batches
from trainer.distribution import connect
from trainer.models import gpt
from trainer.sizes import Sizes
from trainer.step import Compiler, choose_compiler, compile_evaluation
from trainer.tasks.language_modeling import LanguageModeling
from trainer.training_state import create_state

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.fixture(scope="module")
def reference(tensorflow: Any) -> Training:
    """Whole batches on one device in float32."""
    return train(config())


@pytest.fixture(scope="module")
def unequal_reference(tensorflow: Any) -> Training:
    return train(config(), unequal=True)


@pytest.fixture(scope="module")
def dropout_reference(tensorflow: Any) -> Training:
    return train(config(model={"dropout": 0.2}))


def test_the_loss_is_the_mean_over_the_tokens_that_count(unequal_reference: Training) -> None:
    settings = config()
    inputs, targets = batches_SGT(unequal=True)
    weights = {name: tf.constant(weight) for name, weight in create_state(settings, Sizes(VOCABULARY_SIZE)).weights.items()}
    logits = gpt.logits(settings.model, weights, tf.constant(inputs[0])).numpy().astype(np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(targets[0], 0)[..., None], -1)[..., 0]
    assert unequal_reference.losses[0] == pytest.approx(losses[targets[0] >= 0].mean(), rel=1e-6)
    np.testing.assert_array_equal(unequal_reference.history["num_tokens"], (targets >= 0).sum((1, 2)))


def test_a_batch_without_a_target_has_loss_zero_and_breaks_nothing(unequal_reference: Training) -> None:
    assert unequal_reference.losses[-1] == 0.0
    assert unequal_reference.history["gradient_norm"][-1] == 0.0
    assert all(np.isfinite(weight).all() for weight in unequal_reference.arrays().values())


def test_the_gradient_is_that_of_the_mean_loss_clipped_to_its_norm() -> None:
    """The first moment after one update is (1 - beta1) times the clipped gradient; checked with TensorFlow's own tape."""
    settings = config(optimizer={"clip_norm": 0.125, "beta1": 0.9})
    weights = {name: weight.numpy() for name, weight in create_state(settings, Sizes(VOCABULARY_SIZE)).weights.items()}
    inputs, targets = batches_SGT()
    with tf.GradientTape() as tape:
        watched = {name: tf.constant(weight) for name, weight in weights.items()}
        tape.watch(list(watched.values()))
        logits = gpt.logits(settings.model, watched, tf.constant(inputs[0]))
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets[0], logits))
    gradients = {name: gradient.numpy() for name, gradient in tape.gradient(loss, watched).items()}
    norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients.values()))
    trained = train(settings, calls=(1,))
    assert norm > 0.25  # or nothing would be clipped
    assert trained.history["gradient_norm"][0] == pytest.approx(norm, rel=1e-5)
    for name, moment in trained.state.slots["first_moments"].items():
        np.testing.assert_allclose(moment.numpy(), 0.1 * gradients[name] * 0.125 / norm, rtol=1e-3, atol=1e-7)
    unclipped = train(config(optimizer={"clip_norm": None}), calls=(1,))
    for name, moment in unclipped.state.slots["first_moments"].items():
        np.testing.assert_allclose(moment.numpy(), 0.1 * gradients[name], rtol=1e-3, atol=1e-7)


def test_every_step_reports_its_learning_rate_and_its_samples(reference: Training) -> None:
    expected = [5e-3, 1e-2, *(1e-2 * 0.5 * (1 + np.cos(np.pi * done / 4)) for done in range(4))]
    np.testing.assert_allclose(reference.history["learning_rate"], expected, rtol=1e-5)
    np.testing.assert_array_equal(reference.history["sample_ids"].reshape(-1), np.arange(NUM_STEPS * 8))
    assert (reference.history["data_wait_seconds"] >= 0).all()


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_accumulated_micro_batches_equal_one_batch(reference: Training, micro_batch_size: int) -> None:
    trained = train(config(train={"micro_batch_size": micro_batch_size}))
    np.testing.assert_allclose(trained.losses, reference.losses, rtol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [2, 8])
def test_unequal_token_counts_weigh_the_same_wherever_they_fall(unequal_reference: Training, micro_batch_size: int) -> None:
    settings = config(train={"micro_batch_size": micro_batch_size}, distribution=TWO_REPLICAS)
    trained = train(settings, unequal=True)
    np.testing.assert_allclose(trained.losses, unequal_reference.losses, rtol=1e-6)


@pytest.mark.parametrize("distribution", [{}, TWO_REPLICAS], ids=["single", "mirrored"])
def test_dropout_is_the_same_however_the_batch_is_divided(
    dropout_reference: Training, reference: Training, distribution: Mapping[str, Any]
) -> None:
    trained = train(config(model={"dropout": 0.2}, train={"micro_batch_size": 4}, distribution=distribution))
    np.testing.assert_allclose(trained.losses, dropout_reference.losses, rtol=1e-6)
    assert np.abs(dropout_reference.losses - reference.losses).max() > 1e-3


@pytest.mark.parametrize("compiler", ["graph", "elementwise"])
def test_lanes_compute_what_one_computes(dropout_reference: Training, compiler: Compiler) -> None:
    settings = config(model={"dropout": 0.2}, train={"micro_batch_size": 4, "loss_chunk_tokens": 7})
    trained = train(settings, num_lanes=2, compiler=compiler)
    np.testing.assert_allclose(trained.losses, dropout_reference.losses, rtol=1e-6 if compiler == "graph" else 1e-5)
    expected = dropout_reference.history["gradient_norm"]
    np.testing.assert_allclose(trained.history["gradient_norm"], expected, rtol=1e-5)


def test_replicas_hold_the_same_weights(reference: Training) -> None:
    trained = train(config(distribution=TWO_REPLICAS))
    for name, weight in trained.state.weights.items():
        first, second = (copy.numpy() for copy in trained.distribution.local(weight))
        np.testing.assert_array_equal(first, second)
        # The bias of the keys has no gradient but rounding errors, which AdamW makes as large as the rest.
        if not name.endswith("query_key_value.bias"):
            np.testing.assert_allclose(first, reference.state.weights[name].numpy(), rtol=1e-3, atol=1e-4)


def test_steps_in_one_call_are_steps_in_many_calls(dropout_reference: Training) -> None:
    trained = train(config(model={"dropout": 0.2}), calls=(1, 2, 1, 2))
    np.testing.assert_array_equal(trained.losses, dropout_reference.losses)
    for name, weight in dropout_reference.arrays().items():
        np.testing.assert_array_equal(trained.arrays()[name], weight)


@pytest.mark.parametrize("compiler", ["xla", "elementwise"])
@pytest.mark.parametrize("distribution", [{}, pytest.param(TWO_REPLICAS, marks=pytest.mark.slow)], ids=["single", "mirrored"])
def test_xla_computes_what_the_graph_computes(
    dropout_reference: Training, distribution: Mapping[str, Any], compiler: Compiler
) -> None:
    settings = config(model={"dropout": 0.2}, train={"micro_batch_size": 4}, distribution=distribution)
    trained = train(settings, compiler=compiler)
    np.testing.assert_allclose(trained.losses, dropout_reference.losses, rtol=1e-5)


@pytest.mark.parametrize("distribution", [{}, TWO_REPLICAS], ids=["single", "mirrored"])
def test_what_takes_less_memory_computes_the_same(dropout_reference: Training, distribution: Mapping[str, Any]) -> None:
    """Blocks computed again, and a loss in chunks, that do not divide a micro-batch's 20 or 40 tokens."""
    settings = config(
        model={"dropout": 0.2, "recompute": "blocks"},
        train={"micro_batch_size": 4, "loss_chunk_tokens": 7},
        distribution=distribution,
    )
    trained = train(settings)
    np.testing.assert_allclose(trained.losses, dropout_reference.losses, rtol=1e-6)
    expected = dropout_reference.history["gradient_norm"]
    np.testing.assert_allclose(trained.history["gradient_norm"], expected, rtol=1e-5)


def test_float16_has_its_loss_scale_in_chunks_too(reference: Training) -> None:
    trained = train(config(train={"precision": "float16", "loss_chunk_tokens": 7}))
    np.testing.assert_allclose(trained.losses, reference.losses, rtol=5e-3)
    np.testing.assert_allclose(trained.history["gradient_norm"], reference.history["gradient_norm"], rtol=2e-2)


def test_bfloat16_is_close_to_float32(reference: Training) -> None:
    trained = train(config(train={"precision": "bfloat16"}))
    np.testing.assert_allclose(trained.losses, reference.losses, rtol=1e-2)
    assert all(weight.dtype == tf.float32 for weight in trained.state.variables)


def test_a_float16_wire_is_close_to_a_float32_one(unequal_reference: Training) -> None:
    trained = train(config(distribution={**TWO_REPLICAS, "wire_precision": "float16"}), unequal=True)
    np.testing.assert_allclose(trained.losses, unequal_reference.losses, rtol=1e-2)
    np.testing.assert_array_equal(trained.history["num_tokens"], unequal_reference.history["num_tokens"])
    assert np.abs(trained.losses - unequal_reference.losses).max() > 0, "the wire was float32"


def test_a_float16_wire_carries_the_scaled_gradients_of_float16(reference: Training) -> None:
    settings = config(
        train={"precision": "float16", "micro_batch_size": 4, "initial_loss_scale": 128.0},
        distribution={**TWO_REPLICAS, "wire_precision": "float16"},
    )
    trained = train(settings)
    np.testing.assert_allclose(trained.losses, reference.losses, rtol=1e-2)
    np.testing.assert_array_equal(trained.history["loss_scale"], [128.0] * NUM_STEPS)


# -- Updates that are skipped


@pytest.mark.parametrize(
    ("distribution", "precision"),
    [({}, "float32"), (TWO_REPLICAS, "float32"), (TWO_REPLICAS, "float16")],
    ids=["single", "mirrored", "mirrored-float16"],
)
def test_what_is_not_finite_on_one_replica_changes_nothing_on_any(
    monkeypatch: pytest.MonkeyPatch, distribution: Mapping[str, Any], precision: str
) -> None:
    inputs, _ = batches_SGT()
    poison = tf.constant(inputs[1, -1])  # the last row of the second step
    loss_sums = LanguageModeling.loss_sums

    def poisoned(self: Any, weights: Any, features: Any, *rest: Any) -> tuple[tf.Tensor, tf.Tensor]:
        loss_sum, num_tokens = loss_sums(self, weights, features, *rest)
        is_hit = tf.reduce_any(tf.reduce_all(tf.equal(features["inputs"], poison), axis=-1))
        return loss_sum * tf.where(is_hit, np.nan, 1.0), num_tokens

    settings = config(train={"precision": precision, "initial_loss_scale": 128.0}, distribution=distribution)
    before = train(settings, calls=(1,)).arrays()
    monkeypatch.setattr(LanguageModeling, "loss_sums", poisoned)
    trained = train(settings, calls=(2,))
    np.testing.assert_array_equal(trained.history["is_skipped"], [False, True])
    for name, weight in trained.arrays().items():
        np.testing.assert_array_equal(weight, before[name])
    for variable in trained.state.variables:
        for copy in trained.distribution.local(variable):
            assert np.isfinite(copy.numpy()).all()
    assert train(settings, calls=(3,)).history["is_skipped"].tolist() == [False, True, False]


# -- float16 and its loss scale


def float16(**changes: Any) -> Config:
    return config(train={"precision": "float16", **changes})


def test_float16_is_close_to_float32(reference: Training) -> None:
    trained = train(float16(initial_loss_scale=128.0))
    np.testing.assert_allclose(trained.losses, reference.losses, rtol=1e-2)
    np.testing.assert_allclose(trained.history["gradient_norm"], reference.history["gradient_norm"], rtol=5e-2)


@pytest.mark.parametrize("distribution", [{}, TWO_REPLICAS], ids=["single", "mirrored"])
def test_an_overflow_changes_nothing_and_halves_the_loss_scale(distribution: Mapping[str, Any]) -> None:
    settings = config(train={"precision": "float16", "initial_loss_scale": 2.0**40}, distribution=distribution)
    trained = train(settings, calls=(2,))
    assert np.isfinite(trained.losses).all() and trained.losses[0] != trained.losses[1]  # another batch, the same weights
    assert not trained.history["is_skipped"].any(), "an overflow counts as no divergence"
    np.testing.assert_array_equal(trained.history["loss_scale"], [2.0**40, 2.0**39])
    assert float(trained.state.loss_scale.numpy()) == 2.0**38
    beginning = create_state(settings, Sizes(VOCABULARY_SIZE))
    for name, weight in trained.arrays().items():
        np.testing.assert_array_equal(weight, beginning.weights[name].numpy())
        for slot in trained.state.slots.values():
            assert not slot[name].numpy().any()


def test_the_loss_scale_doubles_after_a_quiet_time() -> None:
    trained = train(float16(initial_loss_scale=8.0, loss_scale_growth_steps=2))
    np.testing.assert_array_equal(trained.history["loss_scale"], [8, 8, 16, 16, 32, 32])
    assert float(trained.state.loss_scale.numpy()) == 64.0


def test_the_loss_scale_finds_its_size_by_itself() -> None:
    trained = train(float16(initial_loss_scale=2.0**17))
    scales = trained.history["loss_scale"]
    assert scales[-1] == scales[-2] and trained.losses[-1] < trained.losses[0]


# -- State and evaluation


def test_weights_begin_as_a_function_of_seed_and_name() -> None:
    first, again = (create_state(config(), Sizes(VOCABULARY_SIZE)) for _ in range(2))
    other = create_state(config(run={"seed": 8}), Sizes(VOCABULARY_SIZE))
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight.numpy(), again.weights[name].numpy())
        if first.parameters[name].initializer == "normal":
            assert (weight.numpy() != other.weights[name].numpy()).all()
    kernels = [weight.numpy().ravel()[:64] for name, weight in first.weights.items() if name.endswith("kernel")]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)
    expected = first.parameters["token_embedding"].standard_deviation
    assert first.weights["token_embedding"].numpy().std() == pytest.approx(expected, rel=0.15)


def test_the_compiler_is_the_configured_one_or_the_devices() -> None:
    for compiler in ("xla", "elementwise", "graph"):
        assert choose_compiler(config(train={"compile": compiler})) == (compiler, "as configured")
    for precision in ("float32", "bfloat16", "float16"):
        chosen, reason = choose_compiler(config(train={"compile": "auto", "precision": precision}))
        assert chosen == "elementwise" and reason  # on a CPU


@pytest.mark.parametrize("distribution", [{}, TWO_REPLICAS], ids=["single", "mirrored"])
def test_evaluation_sums_over_all_replicas_and_batches(distribution: Mapping[str, Any]) -> None:
    settings = config(train={"micro_batch_size": 4}, model={"dropout": 0.5}, distribution=distribution)
    connected = connect(settings.distribution)
    plan = plan_batches(settings.train, connected.num_replicas)
    with connected.scope():
        weights = create_state(settings, Sizes(VOCABULARY_SIZE)).weights
    evaluate = compile_evaluation(settings, weights, connected, plan, "graph")
    batches = connected.iterate(dataset(plan, connected.replicas, unequal=True))
    sums, outputs = evaluate(batches, tf.constant(3))
    loss_sums, num_tokens = sums.numpy().T
    assert outputs["sample_ids"].shape[0] == 3

    inputs, targets = (part[:3].reshape(-1, 10) for part in batches_SGT(unequal=True))
    constants = {name: tf.constant(weight.numpy()) for name, weight in weights.items()}
    logits = gpt.logits(settings.model, constants, tf.constant(inputs)).numpy().astype(np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    assert num_tokens.sum() == (targets >= 0).sum()
    assert loss_sums.sum() == pytest.approx(losses[targets >= 0].sum(), rel=1e-5)
