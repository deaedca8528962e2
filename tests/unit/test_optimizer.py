"""The optimizer against the paper's algorithm in NumPy, and the schedules against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import OptimizerConfig
from trainer.models.parameters import Parameter
from trainer.optimizer import learning_rate, update_weight

pytestmark = pytest.mark.usefixtures("tensorflow")

NUM_STEPS = 100


def schedule(**changes: object) -> OptimizerConfig:
    values = {"learning_rate": 1e-2, "minimum_learning_rate": 1e-3, "warmup_steps": 10} | changes
    return OptimizerConfig.model_validate(values)


def rates(optimizer: OptimizerConfig, *steps: int) -> list[float]:
    return [float(learning_rate(optimizer, NUM_STEPS, tf.constant(step, tf.int64))) for step in steps]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "inverse_square_root", "warmup_stable_decay"])
def test_every_schedule_warms_up_in_a_line_to_its_peak(kind: str) -> None:
    decay = {"decay_steps": 20} if kind == "warmup_stable_decay" else {}
    optimizer = schedule(schedule=kind, **decay)
    assert rates(optimizer, 0, 4, 9, 10) == pytest.approx([1e-3, 5e-3, 1e-2, 1e-2], rel=1e-6)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "inverse_square_root"])
def test_without_warm_up_a_schedule_begins_at_its_peak(kind: str) -> None:
    assert rates(schedule(schedule=kind, warmup_steps=0), 0) == pytest.approx([1e-2], rel=1e-6)


def test_constant_stays() -> None:
    assert rates(schedule(schedule="constant"), 10, 55, 99, 100, 500) == pytest.approx([1e-2] * 5, rel=1e-6)


def test_linear_falls_in_a_line_to_its_least() -> None:
    assert rates(schedule(schedule="linear"), 55, 100, 500) == pytest.approx([5.5e-3, 1e-3, 1e-3], rel=1e-5)


def test_cosine_falls_along_half_a_period_to_its_least() -> None:
    quarter = 1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi / 4))
    steps = (32.5, 55, 100, 500)
    optimizer = schedule(schedule="cosine")
    found = [float(learning_rate(optimizer, NUM_STEPS, tf.constant(step, tf.float32))) for step in steps]
    assert found == pytest.approx([quarter, 5.5e-3, 1e-3, 1e-3], rel=1e-5)


def test_inverse_square_root_falls_with_the_root_of_the_step() -> None:
    optimizer = schedule(schedule="inverse_square_root")
    assert rates(optimizer, 40, 90, 10_000_000) == pytest.approx([5e-3, 1e-2 / 3, 1e-3], rel=1e-5)


def test_warmup_stable_decay_stays_and_then_falls() -> None:
    optimizer = schedule(schedule="warmup_stable_decay", decay_steps=20)
    assert rates(optimizer, 50, 80, 90, 100, 500) == pytest.approx([1e-2, 1e-2, 5.5e-3, 1e-3, 1e-3], rel=1e-5)


def test_rates_keep_their_precision_in_long_runs() -> None:
    """The float32 of a step above 2^24 is not exact, but the rate must still fall."""
    optimizer = schedule(schedule="cosine", minimum_learning_rate=0.0)
    found = [float(learning_rate(optimizer, 40_000_000, tf.constant(step, tf.int64))) for step in (20_000_005, 39_999_000)]
    assert found[0] == pytest.approx(5e-3, rel=1e-4)
    assert 0 <= found[1] < 1e-6


def parameter(decays: bool, rate_scale: float = 1.0) -> Parameter:
    return Parameter((4, 3) if decays else (3,), "normal", rate_scale=rate_scale)


@pytest.mark.parametrize("decays", [True, False])
def test_updates_are_those_of_the_paper(decays: bool) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with the learning rate taken into the decay as PyTorch does."""
    optimizer = schedule(weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-3)
    generator = np.random.default_rng(0)
    theta = generator.normal(size=(4, 3))
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    weight, first, second = (tf.Variable(value, dtype=tf.float32) for value in (theta, m, v))
    for step in range(12):
        gradient, rate = generator.normal(size=theta.shape) * 0.01, 1e-2 / (step + 1)
        update_weight(
            optimizer,
            parameter(decays),
            weight,
            first,
            second,
            tf.constant(gradient, tf.float32),
            tf.constant(rate, tf.float32),
            tf.constant(step, tf.int64),
        )
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        corrected = (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-3)
        theta = theta - rate * (corrected + (0.1 * theta if decays else 0.0))
        np.testing.assert_allclose(weight.numpy(), theta, rtol=3e-6, atol=1e-7)
        np.testing.assert_allclose(first.numpy(), m, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(second.numpy(), v, rtol=1e-5, atol=1e-10)


def test_decay_shrinks_a_weight_without_a_gradient_and_nothing_else_does() -> None:
    optimizer = schedule(weight_decay=0.1)
    for decays, expected in ((True, 1.0 - 0.5 * 0.1), (False, 1.0)):
        weight, first, second = tf.Variable(tf.ones(3)), tf.Variable(tf.zeros(3)), tf.Variable(tf.zeros(3))
        update_weight(
            optimizer, parameter(decays), weight, first, second, tf.zeros(3), tf.constant(0.5), tf.constant(0, tf.int64)
        )
        np.testing.assert_allclose(weight.numpy(), np.full(3, expected), rtol=1e-6)


def test_a_slower_weight_learns_and_decays_at_its_own_rate() -> None:
    results = []
    for rate, scale in ((0.1, 0.5), (0.05, 1.0)):
        weight, first, second = tf.Variable(tf.ones((4, 3))), tf.Variable(tf.zeros((4, 3))), tf.Variable(tf.zeros((4, 3)))
        gradient, step = tf.fill((4, 3), 0.3), tf.constant(0, tf.int64)
        update_weight(schedule(), parameter(True, scale), weight, first, second, gradient, tf.constant(rate), step)
        results.append(weight.numpy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_adam_is_adamw_without_decay() -> None:
    results = []
    for kind, decay in (("adam", 0.0), ("adamw", 0.0)):
        weight, first, second = tf.Variable(tf.ones((4, 3))), tf.Variable(tf.zeros((4, 3))), tf.Variable(tf.zeros((4, 3)))
        optimizer = schedule(kind=kind, weight_decay=decay)
        update_weight(
            optimizer, parameter(True), weight, first, second, tf.ones((4, 3)), tf.constant(0.1), tf.constant(0, tf.int64)
        )
        results.append(weight.numpy())
    np.testing.assert_array_equal(results[0], results[1])
