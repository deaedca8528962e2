"""Schedules of the learning rate against their closed forms."""

from __future__ import annotations

import math

import pytest
import tensorflow as tf

from trainer.config import OptimizerConfig
from trainer.optimizers.schedules import learning_rate

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


def test_exponential_rise_goes_from_the_least_to_the_peak_by_equal_factors() -> None:
    found = rates(schedule(schedule="exponential_rise", warmup_steps=0, minimum_learning_rate=1e-6), 0, 33, 66, 99, 500)
    assert found == pytest.approx([1e-6, 1e-6 * 1e4 ** (1 / 3), 1e-6 * 1e4 ** (2 / 3), 1e-2, 1e-2], rel=1e-4)


def test_rates_keep_their_precision_in_long_runs() -> None:
    """The float32 of a step above 2^24 is not exact, but the rate must still fall."""
    optimizer = schedule(schedule="cosine", minimum_learning_rate=0.0)
    found = [float(learning_rate(optimizer, 40_000_000, tf.constant(step, tf.int64))) for step in (20_000_005, 39_999_000)]
    assert found[0] == pytest.approx(5e-3, rel=1e-4)
    assert 0 <= found[1] < 1e-6
