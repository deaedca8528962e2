"""What optimizers keep beside the weights, counted by hand; and what their section refuses. No TensorFlow."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.check import Memory, estimate_memory, report
from trainer.config import Config, OptimizerConfig, plan_batches
from trainer.config_io import dump_config, load_config
from trainer.errors import ConfigError
from trainer.models.parameters import Parameter
from trainer.optimizers.slots import slot_shapes
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

MATRIX, VECTOR, HIDDEN = Parameter((6, 4), "normal"), Parameter((6,), "ones"), Parameter((6, 4), "normal", hidden_columns=(4,))
ADAMS = {"first_moments", "second_moments"}


def memory(config: Config) -> Memory:
    return estimate_memory(config, plan_batches(config.train, 1), run_parameters(config, Sizes(300)), 300)


@pytest.mark.parametrize("kind", ["adamw", "adam", "lamb", "lion", "muon"])
@pytest.mark.parametrize("parameter", [MATRIX, VECTOR, HIDDEN])
def test_moments_have_the_shape_of_the_weight(kind: str, parameter: Parameter) -> None:
    shapes = slot_shapes(OptimizerConfig.model_validate({"kind": kind, "learning_rate": 0.1}), parameter)
    has_one = kind == "lion" or (kind == "muon" and parameter is HIDDEN)
    assert set(shapes) == ({"momentum"} if has_one else ADAMS)
    assert set(shapes.values()) == {parameter.shape}


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix() -> None:
    optimizer = OptimizerConfig(kind="adafactor", learning_rate=0.1)
    assert slot_shapes(optimizer, MATRIX) == {"second_moment_rows": (6,), "second_moment_columns": (4,)}
    assert slot_shapes(optimizer, VECTOR) == {"second_moments": (6,)}


def test_what_is_not_trained_has_no_slots() -> None:
    assert slot_shapes(OptimizerConfig(learning_rate=0.1), Parameter((2, 2), "normal", is_trainable=False)) == {}


# Of the small configuration: 2 layers, width 8, length 16, 300 tokens.
HIDDEN_ELEMENTS = 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
TABLES = 300 * 8 + 16 * 8
VECTORS = 2 * (4 * 8 + 24 + 8 + 32 + 8) + 2 * 8
ELEMENTS = HIDDEN_ELEMENTS + TABLES + VECTORS
ROWS_AND_COLUMNS = 2 * ((8 + 24) + (8 + 8) + (8 + 32) + (32 + 8)) + (300 + 8) + (16 + 8)


@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        ("adamw", 2 * ELEMENTS),
        ("adam", 2 * ELEMENTS),
        ("lamb", 2 * ELEMENTS),
        ("lion", ELEMENTS),
        ("muon", HIDDEN_ELEMENTS + 2 * (TABLES + VECTORS)),
        ("adafactor", ROWS_AND_COLUMNS + VECTORS),
    ],
)
def test_the_memory_of_each_optimizer_adds_up_by_hand(small_config: Path, kind: str, moments: int) -> None:
    used = memory(load_config(small_config, [f"optimizer.kind={kind}"]))
    assert used.weights == 4 * ELEMENTS
    assert used.moments == 4 * moments
    assert used.average == 0


def test_the_average_is_counted_once_and_told(small_config: Path) -> None:
    plain, averaged = load_config(small_config), load_config(small_config, ["train.average_decay=0.99", "optimizer.kind=lion"])
    assert memory(averaged).average == 4 * ELEMENTS
    assert memory(averaged).total == memory(plain).total  # a moment less, an average more
    assert "Lion's moments" in report(averaged, 1) and "the weights' average" in report(averaged, 1)
    assert "the weights' average" not in report(plain, 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("adamw", {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1, "momentum": None}),
        ("lamb", {"beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.01}),
        ("lion", {"beta1": 0.9, "beta2": 0.99}),
        ("adafactor", {"epsilon": 1e-30, "weight_decay": 0.0}),
        ("muon", {"momentum": 0.95, "beta2": 0.95, "weight_decay": 0.1}),
    ],
)
def test_each_kind_has_its_papers_defaults_and_is_read_back_from_what_the_run_writes(
    small_config: Path, tmp_path: Path, kind: str, expected: dict[str, float | None]
) -> None:
    config = load_config(small_config, [f"optimizer.kind={kind}"])
    assert {key: getattr(config.optimizer, key) for key in expected} == expected
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config
    assert load_config(small_config, [f"optimizer.kind={kind}", "optimizer.weight_decay=0.0"]).optimizer.decay == 0.0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimizer.kind=adafactor", "optimizer.beta1=0.8"], "got 0.8, expected nothing: adafactor does not have it"),
        (["optimizer.kind=adafactor", "optimizer.beta2=0.8"], "got 0.8, expected nothing: adafactor does not have it"),
        (["optimizer.kind=lion", "optimizer.epsilon=1e-6"], "got 1e-06, expected nothing: lion does not have it"),
        (["optimizer.kind=adam", "optimizer.weight_decay=0.2"], "got 0.2, expected nothing: adam does not have it"),
        (["optimizer.momentum=0.9"], "got 0.9, expected nothing: adamw does not have it"),
        (["optimizer.kind=muon", "optimizer.momentum=null"], "got null, expected a number below 1"),
        (["optimizer.kind=muon", "model.lora={rank: 2}"], "got muon, expected another: with lora no matrix"),
        (["optimizer.kind=sgd"], "optimizer.kind"),
        (["train.average_decay=1.0"], "train.average_decay"),
        (["train.average_decay=0.0"], "train.average_decay"),
    ],
)
def test_what_would_not_be_obeyed_is_refused(small_config: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(small_config, overrides)
    assert said in str(refusal.value)
