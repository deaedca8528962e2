"""Each optimizer against its paper's algorithm in NumPy, over several updates; and what Muon's orthogonalization does.

The references are in float64 and of one weight: x, its gradient g, the update's number t from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import OptimizerConfig
from trainer.models.parameters import Parameter
from trainer.optimizers.average import kept_of_average, move_average
from trainer.optimizers.choice import update_weight
from trainer.optimizers.muon import orthogonalize
from trainer.optimizers.scalars import update_scalars
from trainer.optimizers.slots import slot_shapes

pytestmark = pytest.mark.usefixtures("tensorflow")

NUM_UPDATES = 8
Array = np.ndarray
State = dict[str, Any]


def adamw(settings: OptimizerConfig, x: Array, g: Array, state: State, t: int, rate: float, decay: float) -> Array:
    """Loshchilov and Hutter 2019, algorithm 2, with the learning rate taken into the decay as PyTorch does."""
    beta1, beta2 = settings.beta1, settings.beta2
    m = state["first_moments"] = beta1 * state.get("first_moments", 0.0) + (1 - beta1) * g
    v = state["second_moments"] = beta2 * state.get("second_moments", 0.0) + (1 - beta2) * g**2
    return x - rate * (m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + settings.epsilon) + decay * x)


def lamb(settings: OptimizerConfig, x: Array, g: Array, state: State, t: int, rate: float, decay: float) -> Array:
    """You et al. 2020, algorithm 2."""
    r = (x - adamw(settings, x, g, state, t, 1.0, 0.0)) + decay * x
    ratio = np.linalg.norm(x) / np.linalg.norm(r) if x.ndim == 2 else 1.0
    return x - rate * ratio * r


def lion(settings: OptimizerConfig, x: Array, g: Array, state: State, t: int, rate: float, decay: float) -> Array:
    """Chen et al. 2023, algorithm 2."""
    m = state.get("momentum", np.zeros_like(x))
    state["momentum"] = settings.beta2 * m + (1 - settings.beta2) * g
    return x - rate * (np.sign(settings.beta1 * m + (1 - settings.beta1) * g) + decay * x)


def adafactor(settings: OptimizerConfig, x: Array, g: Array, state: State, t: int, rate: float, decay: float) -> Array:
    """Shazeer and Stern 2018, algorithms 4 and 5, with sums as they stand there; alpha is the learning rate."""
    beta, squares = 1 - t**-0.8, g**2 + 1e-30
    if x.ndim == 2:
        rows, columns = (beta * state.get(k, 0.0) + (1 - beta) * squares.sum(k) for k in (1, 0))
        state[1], state[0] = rows, columns
        state["second_moment_rows"], state["second_moment_columns"] = rows / x.shape[1], columns / x.shape[0]
        v = np.outer(rows, columns) / rows.sum()
    else:
        v = state["second_moments"] = beta * state.get("second_moments", 0.0) + (1 - beta) * squares
    u = g / np.sqrt(v)
    return x - rate * (u / max(1.0, float(np.sqrt(np.mean(u**2)))) + decay * x)


def muon(settings: OptimizerConfig, x: Array, g: Array, state: State, t: int, rate: float, decay: float) -> Array:
    """Jordan et al. 2024, with the scale of Liu et al. 2025, equation 4; of the parts that `PARTS` has."""
    assert settings.momentum is not None
    m = state["momentum"] = settings.momentum * state.get("momentum", 0.0) + g
    parts = np.split(g + settings.momentum * m, np.cumsum(PARTS)[:-1], axis=1)
    changes = [0.2 * np.sqrt(max(part.shape)) * newton_schulz(part) for part in parts]
    return x - rate * (np.concatenate(changes, 1) + decay * x)


def newton_schulz(matrix: Array) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.linalg.norm(matrix)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


Reference = Callable[[OptimizerConfig, Array, Array, State, int, float, float], Array]
REFERENCES: dict[str, Reference] = {
    "adamw": adamw,
    "adam": adamw,
    "lamb": lamb,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
}
PARTS = (5, 2, 2)
PARAMETERS = {
    "vector": Parameter((7,), "normal"),
    "matrix": Parameter((6, 9), "normal"),
    "wide hidden matrix": Parameter((4, 9), "normal", hidden_columns=PARTS),
    "tall hidden matrix": Parameter((11, 9), "normal", hidden_columns=PARTS),
    "slower matrix": Parameter((6, 9), "normal", rate_scale=0.5, hidden_columns=PARTS),
}


def settings_of(kind: str, **changes: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"kind": kind, "learning_rate": 1e-2} | changes)


def variables(settings: OptimizerConfig, parameter: Parameter) -> dict[str, tf.Variable]:
    return {slot: tf.Variable(tf.zeros(shape)) for slot, shape in slot_shapes(settings, parameter).items()}


def update(
    settings: OptimizerConfig,
    parameter: Parameter,
    weight: tf.Variable,
    slots: dict[str, tf.Variable],
    gradient: Array,
    rate: float,
    step: int = 0,
) -> None:
    scalars = update_scalars(settings, tf.constant(rate, tf.float32), tf.constant(step, tf.int64))
    update_weight(settings, parameter, weight, slots, tf.constant(gradient, tf.float32), scalars)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("which", PARAMETERS)
@pytest.mark.parametrize("kind", REFERENCES)
def test_updates_are_those_of_the_paper(kind: str, which: str, decay: float) -> None:
    # A large epsilon shows where it is added.
    epsilon = {} if kind in ("lion", "adafactor") else {"epsilon": 1e-3}
    settings, parameter = settings_of(kind, weight_decay=decay, **epsilon), PARAMETERS[which]
    is_muons = kind != "muon" or parameter.hidden_columns
    reference = REFERENCES[kind] if is_muons else adamw
    applied = decay if kind != "adam" and len(parameter.shape) == 2 else 0.0
    generator = np.random.default_rng(0)
    x: Array = generator.normal(size=parameter.shape)
    weight, slots, state = tf.Variable(x, dtype=tf.float32), variables(settings, parameter), State()
    for t in range(1, NUM_UPDATES + 1):
        gradient, rate = generator.normal(size=x.shape) * 0.01, 1e-2 / t
        update(settings, parameter, weight, slots, gradient, rate, t - 1)
        x = reference(settings, x, gradient, state, t, rate * parameter.rate_scale, applied)
        np.testing.assert_allclose(weight.numpy(), x, rtol=3e-6, atol=2e-6 if kind == "muon" else 5e-7)
        for slot, variable in slots.items():
            np.testing.assert_allclose(variable.numpy(), state[slot], rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in REFERENCES if kind not in ("adam", "lamb")])
def test_decay_shrinks_a_matrix_without_a_gradient_and_nothing_else_does(kind: str) -> None:
    settings = settings_of(kind, weight_decay=0.1)
    for parameter, expected in ((Parameter((3, 2), "normal"), 1.0 - 0.5 * 0.1), (Parameter((3,), "normal"), 1.0)):
        weight = tf.Variable(tf.ones(parameter.shape))
        update(settings, parameter, weight, variables(settings, parameter), np.zeros(parameter.shape), 0.5)
        np.testing.assert_allclose(weight.numpy(), np.full(parameter.shape, expected), rtol=1e-6)


def test_lamb_moves_a_matrix_that_begins_at_zero() -> None:
    settings, parameter = settings_of("lamb"), Parameter((3, 2), "zeros")
    weight = tf.Variable(tf.zeros((3, 2)))
    update(settings, parameter, weight, variables(settings, parameter), np.ones((3, 2)), 0.5)
    np.testing.assert_allclose(weight.numpy(), -0.5, rtol=1e-5)


def test_adafactor_bears_rows_and_columns_that_never_had_a_gradient() -> None:
    settings, parameter = settings_of("adafactor"), Parameter((4, 3), "normal")
    weight, slots = tf.Variable(tf.ones((4, 3))), variables(settings, parameter)
    gradient = np.zeros((4, 3), np.float32)
    gradient[1, 2] = 1.0
    for step in range(3):
        update(settings, parameter, weight, slots, gradient, 0.1, step)
    moved = weight.numpy() != 1.0
    np.testing.assert_array_equal(moved, gradient > 0)
    assert np.isfinite(weight.numpy()).all()


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalization_brings_singular_values_near_one_and_turns_nothing(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    rank = min(shape)
    u, _ = np.linalg.qr(generator.normal(size=(shape[0], rank)))
    v, _ = np.linalg.qr(generator.normal(size=(shape[1], rank)))
    values = np.geomspace(1.0, 0.03, rank)
    found = orthogonalize(tf.constant(1e-3 * (u * values) @ v.T, tf.float32)).numpy()
    turned = u.T @ found @ v
    np.testing.assert_allclose(turned - np.diag(np.diag(turned)), 0.0, atol=2e-3)
    singular = np.linalg.svd(found, compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.25, singular


def test_each_part_of_a_joint_matrix_takes_its_whole_update() -> None:
    """The values' gradient is a thousand times the queries': together they would leave those next to nothing."""
    settings, parameter = settings_of("muon", weight_decay=0.0), Parameter((8, 24), "normal", hidden_columns=(8, 8, 8))
    gradient = np.random.default_rng(2).normal(size=(8, 24)).astype(np.float32)
    gradient[:, :16] *= 1e-3
    weight = tf.Variable(tf.zeros((8, 24)))
    update(settings, parameter, weight, variables(settings, parameter), gradient, 1.0)
    for part in np.split(weight.numpy(), 3, axis=1):
        # Of orthogonal matrices the norm would be 0.2 sqrt(8) sqrt(8).
        assert np.linalg.norm(part) == pytest.approx(1.6, rel=0.2)


def test_the_average_is_that_of_the_weights_with_a_quick_beginning() -> None:
    generator = np.random.default_rng(3)
    weights = generator.normal(size=(40, 5))
    average, expected = tf.Variable(weights[0], dtype=tf.float32), weights[0]
    for step, weight in enumerate(weights[1:]):
        kept = kept_of_average(0.7, tf.constant(step, tf.int64))
        move_average(average, tf.Variable(weight, dtype=tf.float32), kept)
        decay = min(0.7, (2 + step) / (11 + step))
        expected = decay * expected + (1 - decay) * weight
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-5, atol=1e-6)
