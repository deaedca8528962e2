"""`drumline verify` accepts what runs really write, and names the first line or checkpoint that differs from the plan."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training import run_path, training_config
from trainer.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def verified(prepared: Path, tensorflow: ModuleType) -> Path:
    """Twenty steps, in two starts."""
    from trainer.loop import train

    for steps in (10, 20):
        train(training_config(prepared, "verified", train={"steps": steps}))
    return run_path(training_config(prepared, "verified"))


@pytest.fixture
def run(verified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(verified, tmp_path / "run"))


def verify(run: Path) -> str:
    from trainer.verify import verify_run

    return str(verify_run(run))


def change(run: Path, number: int, **changes: Any) -> None:
    """Changes fields of a line of the ledger, counted from 1."""
    lines = (run / "ledger.jsonl").read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | changes)
    (run / "ledger.jsonl").write_text("\n".join(lines) + "\n")


def test_an_account_of_the_run_is_given(run: Path) -> None:
    assert verify(run) == (
        "20 steps, positions 0 to 160 of the order, every one consumed as planned; 2 starts on 1, 1 replicas; "
        "0 rollbacks over 0 samples; 0 skipped updates; 2 checkpoints agree"
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hash": "ab" * 32}, "hash is 'abab"),
        ({"num_samples": 1000}, "num_samples is 1000, and by the plan it must be"),
        ({"first_sample": 0}, "first_sample is 0, and by the plan it must be"),
        ({"first_step": 9}, "first_step is 9, and by the plan it must be"),
    ],
)
def test_a_line_that_differs_is_named(run: Path, changes: dict[str, Any], complaint: str) -> None:
    change(run, 4, **changes)
    with pytest.raises(CheckpointError, match=rf"ledger\.jsonl:4: {complaint}"):
        verify(run)


def without_a_line(run: Path) -> None:
    path = run / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))


def with_a_line_twice(run: Path) -> None:
    path = run / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[2:]))


@pytest.mark.parametrize("tamper", [without_a_line, with_a_line_twice])
def test_a_gap_and_a_repeat_are_found(run: Path, tamper: Callable[[Path], None]) -> None:
    tamper(run)
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl:\d+: first_step is \d+, and by the plan it must be \d+"):
        verify(run)


def test_a_checkpoint_that_knows_other_samples_is_named(run: Path) -> None:
    state = run / "checkpoints" / "step-00000010" / "state.json"
    state.write_text(re.sub(r'"num_samples": \d+', '"num_samples": 88', state.read_text()))
    with pytest.raises(CheckpointError, match=r"step-00000010: num_samples is 88, and by the plan it must be 80"):
        verify(run)


def test_other_data_cannot_be_compared_and_that_is_said(run: Path) -> None:
    change(run, 1, data="cd" * 32)
    with pytest.raises(DataError, match=r"ledger\.jsonl:1: was begun with other training data"):
        verify(run)


def test_a_ledger_that_begins_in_the_middle_is_computed_from_the_beginning(prepared: Path, tensorflow: ModuleType) -> None:
    from trainer.loop import train

    train(training_config(prepared, "moved", train={"steps": 10}))
    config = training_config(prepared, "moved")
    (run_path(config) / "ledger.jsonl").unlink()  # as when the checkpoints alone were kept
    train(config)
    assert verify(run_path(config)).startswith("20 steps, positions 0 to 160 of the order")


def test_changes_that_were_allowed_are_followed(prepared: Path, tensorflow: ModuleType) -> None:
    from trainer.loop import train

    train(training_config(prepared, "allowed", train={"steps": 10}))
    changed = training_config(
        prepared, "allowed", run={"seed": 8}, train={"global_batch_size": 16}, optimizer={"learning_rate": 1e-3}
    )
    with pytest.raises(CheckpointError, match=r"run\.seed was 7 and is now 8; optimizer\.learning_rate was 0\.003 and is now"):
        train(changed)
    train(changed, allowed_changes=["run.seed", "optimizer", "train.global_batch_size"])
    assert verify(run_path(changed)).startswith("20 steps, positions 0 to 240 of the order")
