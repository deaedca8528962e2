"""A run's variables with each optimizer: what they are, that they train, and that a checkpoint holds all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.toy_training import TWO_REPLICAS, VOCABULARY_SIZE, Training, config, dataset, train
from trainer import resume
from trainer.checkpoint import read_checkpoint, write_checkpoint
from trainer.config import Config, plan_batches
from trainer.distribution import connect
from trainer.errors import CheckpointError
from trainer.position import GraphPosition
from trainer.progress import Progress
from trainer.run_directory import RunDirectory
from trainer.sizes import Sizes
from trainer.step import compile_training
from trainer.tasks.language_modeling import LanguageModeling
from trainer.training_state import TrainingState, create_state

pytestmark = pytest.mark.usefixtures("tensorflow")

KINDS = ("adamw", "adam", "lamb", "adafactor", "lion", "muon")
# Lion moves every number by the whole learning rate.
RATES = {"lion": 2e-3}
AVERAGED = {"average_decay": 0.5}


def config_of(kind: str, **train_section: Any) -> Config:
    return config(optimizer={"kind": kind, "learning_rate": RATES.get(kind, 1e-2)}, train=train_section)


def values(state: TrainingState) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in state.variables]


@pytest.fixture
def without_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of the toy have no identity: it has no store."""
    monkeypatch.setattr(resume, "identity", lambda *_: {})


def save(state: TrainingState, settings: Config, run: RunDirectory, step: int) -> Path:
    corpus: Any = None
    return write_checkpoint(run.checkpoints, resume.snapshot(state, settings, corpus, Progress(step=step)), {})


@pytest.mark.usefixtures("without_corpus")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_goes_on_from_a_checkpoint_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    settings, run = config_of(kind, **AVERAGED), RunDirectory(tmp_path)
    distribution = connect(settings.distribution)
    plan = plan_batches(settings.train, 1)
    state = create_state(settings, Sizes(VOCABULARY_SIZE))
    train_steps = compile_training(settings, state, distribution, plan, "graph", GraphPosition())

    def go_on(step: int) -> np.ndarray:
        batches = iter(dataset(plan, distribution.replicas, unequal=False).take(1).repeat())
        return train_steps(batches, tf.constant(step, tf.int64), tf.constant(3))["loss"].numpy()

    losses = go_on(0)
    at_three = values(state)
    save(state, settings, run, 3)
    later = go_on(3)
    assert np.isfinite(later).all() and later[-1] < losses[0] - 0.05
    at_six = values(state)
    # All has changed since, or its restoration would not show: but for the loss scale and its count.
    unchanged = [variable for variable, ours, theirs in zip(state.variables, at_three, at_six, strict=True) if ours == theirs]
    assert unchanged == [state.loss_scale, state.steps_since_overflow]
    assert resume.roll_back(run, settings, state, distribution, before_step=6).step == 3
    assert values(state) == at_three
    np.testing.assert_array_equal(go_on(3), later)
    assert values(state) == at_six


def test_adamw_saves_its_moments_under_the_names_they_always_had(tmp_path: Path, without_corpus: None) -> None:
    settings = config_of("adamw")
    state = create_state(settings, Sizes(VOCABULARY_SIZE))
    saved = read_checkpoint(save(state, settings, RunDirectory(tmp_path), 1)).optimizer
    moments = {f"{slot}.{name}" for slot in ("first_moments", "second_moments") for name in state.weights}
    assert set(saved) == moments | {"loss_scale", "steps_since_overflow"}


@pytest.mark.usefixtures("without_corpus")
def test_averages_begin_as_the_weights_where_a_checkpoint_has_none_and_end_where_the_run_has_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    distribution = connect(config().distribution)
    with_averages, without = (create_state(config_of("adamw", **each), Sizes(VOCABULARY_SIZE)) for each in (AVERAGED, {}))
    without.weights["token_embedding"].assign_add(tf.ones_like(without.weights["token_embedding"]))
    save(without, config_of("adamw"), run, 1)
    resume.roll_back(run, config_of("adamw", **AVERAGED), with_averages, distribution, before_step=2)
    for name, average in with_averages.averages.items():
        np.testing.assert_array_equal(average.numpy(), without.weights[name].numpy())
    with_averages.weights["token_embedding"].assign_add(tf.ones_like(with_averages.weights["token_embedding"]))
    save(with_averages, config_of("adamw", **AVERAGED), run, 5)
    resume.roll_back(run, config_of("adamw"), without, distribution, before_step=6)
    for name, weight in without.weights.items():
        np.testing.assert_array_equal(weight.numpy(), with_averages.weights[name].numpy())


@pytest.mark.usefixtures("without_corpus")
def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    save(create_state(config_of("adamw"), Sizes(VOCABULARY_SIZE)), config_of("adamw"), run, 1)
    other = create_state(config_of("lion"), Sizes(VOCABULARY_SIZE))
    with pytest.raises(CheckpointError, match=r"momentum\.token_embedding is missing"):
        resume.roll_back(run, config_of("lion"), other, connect(config().distribution), before_step=2)


def test_the_average_follows_the_weights_of_every_update() -> None:
    def state_after(num_steps: int) -> Training:
        return train(config_of("adamw", average_decay=0.25), calls=(num_steps,))

    beginning = create_state(config_of("adamw"), Sizes(VOCABULARY_SIZE)).weights
    one, two = state_after(1), state_after(2)
    for name, average in two.state.averages.items():
        first = 2 / 11 * beginning[name].numpy() + 9 / 11 * one.arrays()[name]
        np.testing.assert_allclose(one.state.averages[name].numpy(), first, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(average.numpy(), 0.25 * first + 0.75 * two.arrays()[name], rtol=1e-5, atol=1e-6)
        assert two.state.evaluated[name] is average
    plain = train(config_of("adamw"), calls=(2,))
    np.testing.assert_array_equal(plain.losses, two.losses)
    assert plain.state.evaluated == plain.state.weights


def test_what_is_frozen_has_neither_slots_nor_an_average() -> None:
    settings = config(optimizer={"kind": "muon", "freeze": ["token_embedding", "*query_key_value*"]}, train=AVERAGED)
    state = create_state(settings, Sizes(VOCABULARY_SIZE))
    trained = {name for name in state.weights if name != "token_embedding" and "query_key_value" not in name}
    assert set(state.averages) == trained
    assert {name for slot in state.slots.values() for name in slot} == trained
    assert set(state.slots["momentum"]) == {name for name in trained if name.startswith("blocks.") and name.endswith("kernel")}


@pytest.mark.parametrize("kind", ["adamw", "adam", "lion"])
@pytest.mark.parametrize("distribution", [{}, TWO_REPLICAS], ids=["single", "mirrored"])
def test_an_update_that_xla_compiles_is_that_of_the_graph(kind: str, distribution: Mapping[str, Any]) -> None:
    whole = {"model": {"biases": False}, "optimizer": {"kind": kind, "learning_rate": 1e-2}, "train": AVERAGED}
    compiled, plain = (train(config(**whole, distribution=distribution), compiler=each) for each in ("elementwise", "graph"))
    for variable, expected in zip(*(each.state.variables for each in (compiled, plain)), strict=True):
        for copy in compiled.distribution.local(variable):
            found, exact = copy.numpy(), plain.distribution.local(expected)[0].numpy()
            # Lion goes by signs alone, of which rounding may turn one.
            far = np.abs(found - exact) > 1e-3 * np.abs(exact) + 1e-4 * np.abs(exact).max()
            assert far.mean() <= (0.01 if kind == "lion" else 0.0), variable.name


@pytest.mark.parametrize("kind", ["adafactor", "muon"])
def test_replicas_hold_the_same_and_a_skipped_update_changes_none_of_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # No biases: by those of keys the gradient is zero but for rounding, whose sign is all that Adafactor's first step goes by.
    whole: dict[str, Any] = {"model": {"biases": False}, "optimizer": {"kind": kind, "learning_rate": 1e-2}, "train": AVERAGED}
    settings = config(**whole, distribution=TWO_REPLICAS)
    alone, once = train(config(**whole), calls=(1,)), train(settings, calls=(1,))
    loss_sums = LanguageModeling.loss_sums

    def poisoned(self: Any, weights: Any, features: Any, key: Any, *others: Any) -> tuple[tf.Tensor, tf.Tensor]:
        loss_sum, num_tokens = loss_sums(self, weights, features, key, *others)
        return loss_sum * tf.where(key.seed[1] == 1, np.nan, 1.0), num_tokens

    monkeypatch.setattr(LanguageModeling, "loss_sums", poisoned)
    trained = train(settings, calls=(2,))
    assert trained.history["is_skipped"].tolist() == [False, True]
    for variable, before, single in zip(*(each.state.variables for each in (trained, once, alone)), strict=True):
        for copy in trained.distribution.local(variable):
            np.testing.assert_array_equal(copy.numpy(), before.numpy())
        np.testing.assert_allclose(before.numpy(), single.numpy(), rtol=1e-2, atol=1e-3)
