"""A run goes on as another only where the user says so, key by key."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.errors import CheckpointError
from trainer.identity import refuse_changes

SAVED: dict[str, Any] = {"run.seed": 1, "model.width": 8, "model.dropout": 0.0, "optimizer.learning_rate": 0.1}


def test_what_is_the_same_is_let_through() -> None:
    assert refuse_changes(SAVED, dict(SAVED), (), "step-1") == []


def test_what_differs_is_refused_key_by_key_with_the_way_to_allow_it() -> None:
    now = SAVED | {"model.width": 16, "optimizer.learning_rate": 0.2}
    with pytest.raises(CheckpointError) as refusal:
        refuse_changes(SAVED, now, (), "step-1")
    assert str(refusal.value) == (
        "step-1 is of another run: model.width was 8 and is now 16; optimizer.learning_rate was 0.1 and is now 0.2; take "
        "another run.name, change it back, or go on all the same with --allow-change model.width "
        "--allow-change optimizer.learning_rate"
    )


@pytest.mark.parametrize("allowed", [["optimizer.learning_rate"], ["optimizer"]])
def test_what_is_allowed_may_differ_and_is_told(allowed: list[str]) -> None:
    changes = refuse_changes(SAVED, SAVED | {"optimizer.learning_rate": 0.2}, allowed, "step-1")
    assert changes == ["optimizer.learning_rate was 0.1 and is now 0.2"]
    with pytest.raises(CheckpointError, match=r"model\.width"):
        refuse_changes(SAVED, SAVED | {"optimizer.learning_rate": 0.2, "model.width": 9}, allowed, "step-1")


@pytest.mark.parametrize("key", ["optimizer.learning", "train.steps", "model.width.x", "opt"])
def test_a_key_that_does_not_exist_or_need_no_leave_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"--allow-change {key}: no such key"):
        refuse_changes(SAVED, SAVED, [key], "step-1")


def test_a_key_that_older_checkpoints_do_not_have_had_its_default() -> None:
    older = {key: value for key, value in SAVED.items() if key != "model.dropout"}
    assert refuse_changes(older, SAVED, (), "step-1") == []
    with pytest.raises(CheckpointError, match=r"model\.dropout was 0\.0 and is now 0\.5"):
        refuse_changes(older, SAVED | {"model.dropout": 0.5}, (), "step-1")


def test_a_run_from_before_there_were_other_tasks_goes_on() -> None:
    """Its checkpoints know nothing of the keys that came since."""
    now = SAVED | {
        "task": "language_modeling",
        "data.pack": True,
        "data.labels": [],
        "data.target_length": None,
        "data.masking.rate": 0.15,
        "data.augmentation.mixup": 0.0,
        "model.lora": None,
        "model.token_types": 0,
        "optimizer.freeze": [],
        "optimizer.momentum": None,
        "train.label_smoothing": 0.0,
        "train.average_decay": None,
    }
    assert refuse_changes(SAVED | {"data.pack": True}, now, (), "step-1") == []
    with pytest.raises(CheckpointError, match=r"optimizer\.freeze was \[\] and is now \[\"output\"\]"):
        refuse_changes(SAVED | {"data.pack": True}, now | {"optimizer.freeze": ["output"]}, (), "step-1")
