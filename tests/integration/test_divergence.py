"""A run that diverges goes back and over the samples that led there; where that does not help it ends with exit code 3. No
checkpoint is ever spoilt."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.training import json_lines, run_path, train_losses, training_config
from trainer.checkpoint import list_checkpoints, read_checkpoint
from trainer.config import Config
from trainer.errors import Diverged


@pytest.fixture
def spoilt(tensorflow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has certain samples multiply the loss of the rows in which they are: the data's doing, not the step's."""
    from trainer.data import pipeline
    from trainer.tasks.language_modeling import LanguageModeling

    gather, sums = pipeline._gather, LanguageModeling.loss_sums

    def spoil(ids: set[int], factor: float) -> None:
        def marked(samples: Any, order: Any, wanted: np.ndarray, *others: Any) -> dict[str, np.ndarray]:
            arrays = gather(samples, order, wanted, *others)
            arrays["inputs"][np.isin(wanted, list(ids))] = 0  # the same token all along, as no text has it
            return arrays

        def multiplied(self: Any, weights: Any, features: Any, *rest: Any) -> Any:
            loss_sum, num_tokens = sums(self, weights, features, *rest)
            is_marked = tensorflow.reduce_any(tensorflow.reduce_all(tensorflow.equal(features["inputs"], 0), axis=-1))
            return loss_sum * tensorflow.where(is_marked, factor, 1.0), num_tokens

        monkeypatch.setattr(pipeline, "_gather", marked)
        monkeypatch.setattr(LanguageModeling, "loss_sums", multiplied)

    return spoil


def config(directory: Path, name: str, **divergence: Any) -> Config:
    return training_config(
        directory,
        name,
        train={"steps": 24, "steps_per_loop": 4},
        evaluation={"every": None},
        checkpoint={"every": 8},
        divergence=divergence,
    )


def ids_of_step(settings: Config, step: int) -> list[int]:
    """The samples of an update, by its number from 1."""
    from trainer.data.corpus import open_corpus

    size = settings.train.global_batch_size
    ids: list[int] = open_corpus(settings).order.sample_ids((step - 1) * size, size).tolist()
    return ids


def consumed(settings: Config) -> str:
    from trainer.verify import verify_run

    return str(verify_run(run_path(settings)))


def assert_nothing_is_spoilt(run: Path) -> None:
    for info in list_checkpoints(run / "checkpoints"):
        saved = read_checkpoint(info.path)
        for name, values in {**saved.weights, **saved.optimizer}.items():
            assert np.isfinite(values).all(), f"{info.path}: {name}"


def test_an_update_that_is_not_finite_is_skipped_and_told(prepared: Path, spoilt: Any) -> None:
    from trainer.loop import train

    settings = config(prepared, "one-nan")
    spoilt({ids_of_step(settings, 11)[3]}, math.nan)
    train(settings)
    run = run_path(settings)
    lines = [line for line in json_lines(run / "metrics.jsonl") if line["split"] == "train"]
    assert [line["step"] for line in lines if line["loss"] is None] == [11]
    assert [line["skipped_updates"] for line in lines] == [0.0] * 10 + [1.0] * 14
    assert [line["skipped_updates"] for line in json_lines(run / "ledger.jsonl") if "skipped_updates" in line] == [[11]]
    assert "1 skipped updates" in consumed(settings) and "0 rollbacks" in consumed(settings)
    assert_nothing_is_spoilt(run)


def test_too_many_in_a_row_lead_back_and_over_their_samples(prepared: Path, spoilt: Any) -> None:
    from trainer.loop import train

    settings = config(prepared, "many-nan", max_skipped_in_a_row=2)
    spoilt(set(itertools.chain(*(ids_of_step(settings, step) for step in (11, 12, 13)))), math.nan)
    train(settings)
    run = run_path(settings)
    (rollback,) = [line["rollback"] for line in json_lines(run / "ledger.jsonl") if line.get("event") == "rollback"]
    size = settings.train.global_batch_size
    assert (rollback["from_step"], rollback["to_step"]) == (13, 8)
    assert (rollback["first_sample"], rollback["num_samples"]) == (8 * size, 5 * size)
    assert list(train_losses(run)) == list(range(1, 25))
    assert "1 rollbacks over 40 samples" in consumed(settings)
    assert_nothing_is_spoilt(run)


def test_a_spike_leads_back_and_over_its_samples(prepared: Path, spoilt: Any) -> None:
    from trainer.loop import train

    settings = config(prepared, "spike", spike_deviations=20.0, spike_window=8)
    spoilt({ids_of_step(settings, 19)[0]}, 50.0)
    train(settings)
    run = run_path(settings)
    (rollback,) = [line["rollback"] for line in json_lines(run / "ledger.jsonl") if line.get("event") == "rollback"]
    assert (rollback["from_step"], rollback["to_step"]) == (19, 16) and "spike" in rollback["reason"]
    assert max(train_losses(run).values()) < 10
    assert "1 rollbacks over 24 samples" in consumed(settings)


@pytest.mark.parametrize("steps_per_loop", [1, 4])
def test_a_run_that_diverges_again_and_again_says_what_was_tried(
    prepared: Path, tensorflow: ModuleType, steps_per_loop: int
) -> None:
    from trainer.loop import train

    settings = training_config(
        prepared,
        f"diverged-{steps_per_loop}",
        optimizer={"learning_rate": 1e30, "minimum_learning_rate": 0.0, "warmup_steps": 0, "clip_norm": None},
        train={"steps": 12, "steps_per_loop": steps_per_loop},
        checkpoint={"every": 1 if steps_per_loop == 1 else 4},
        divergence={"max_rollbacks": 2},
    )
    with pytest.raises(Diverged, match=r"skipped updates in a row, the last with loss (nan|inf)") as diverged:
        train(settings)
    said = str(diverged.value)
    # Where going back to a checkpoint led no further, the one before it is tried, and at last the beginning.
    tried = ["from step 5 to 1", "from step 5 to 0"] if steps_per_loop == 1 else ["from step 5 to 0"] * 2
    assert [f"went back {each}" in said for each in tried] == [True, True] and said.count("went back") == 2
    assert "learning_rate" in said and Diverged.exit_code == 3
    assert_nothing_is_spoilt(run_path(settings))
