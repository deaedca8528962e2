"""The ledger: a hash of what was really consumed that knows neither replicas nor stops."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.config import BatchPlan
from trainer.divergence import Divergence
from trainer.ledger import Ledger, rolled, stepped_over
from trainer.progress import Progress, Rollback

GLOBAL_BATCH_SIZE, NUM_STEPS = 72, 6
IDS = np.random.default_rng(0).permutation(GLOBAL_BATCH_SIZE * NUM_STEPS).reshape(NUM_STEPS, GLOBAL_BATCH_SIZE)


def plan(num_replicas: int, num_micro_batches: int = 1) -> BatchPlan:
    rows = GLOBAL_BATCH_SIZE // num_replicas // num_micro_batches
    return BatchPlan(GLOBAL_BATCH_SIZE, num_replicas, num_micro_batches, rows)


def gathered(ids: np.ndarray, num_processes: int, replicas_each: int, num_micro_batches: int) -> np.ndarray:
    """The ids of some steps as the loop gathers them, each replica with its slice of the global batch."""
    rows = GLOBAL_BATCH_SIZE // (num_processes * replicas_each * num_micro_batches)
    by_process = ids.reshape(len(ids), num_processes, replicas_each, num_micro_batches, rows)
    return np.moveaxis(by_process, 1, 0)


def final_hash(num_processes: int, replicas_each: int, num_micro_batches: int, parts: list[int]) -> str:
    ledger = Ledger(None, Progress(), plan(num_processes * replicas_each, num_micro_batches))
    for first, last in zip([0, *parts], [*parts, NUM_STEPS], strict=True):
        consume(ledger, gathered(IDS[first:last], num_processes, replicas_each, num_micro_batches))
    return ledger.progress.ledger_hash


def consume(ledger: Ledger, ids: np.ndarray, skipped: tuple[int, ...] = ()) -> None:
    """Takes the ids of some updates, of which those of the given indices were skipped."""
    is_skipped = np.zeros(ids.shape[1], bool)
    is_skipped[list(skipped)] = True
    ledger.consume(ids, is_skipped)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_hash_is_the_one_that_the_documentation_describes() -> None:
    expected = b""
    for ids in IDS:
        expected = hashlib.sha256(expected + ids.astype("<i8").tobytes()).digest()
    assert final_hash(1, 1, 1, []) == expected.hex()


@pytest.mark.parametrize(("num_processes", "replicas_each"), [(1, 1), (2, 1), (1, 2), (3, 1), (8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_the_hash_knows_neither_world_size_nor_micro_batches(
    num_processes: int, replicas_each: int, num_micro_batches: int
) -> None:
    assert final_hash(num_processes, replicas_each, num_micro_batches, []) == final_hash(1, 1, 1, [])


@pytest.mark.parametrize("parts", [[1], [1, 2, 3, 4, 5], [4]])
def test_the_hash_does_not_know_where_the_run_was_divided(parts: list[int]) -> None:
    assert final_hash(2, 1, 1, parts) == final_hash(1, 1, 1, [])


def test_the_hash_knows_order_and_ids() -> None:
    ids = IDS[0].copy()
    ids[[0, 1]] = ids[[1, 0]]
    assert rolled("", ids) != rolled("", IDS[0])
    assert rolled(rolled("", IDS[0]), IDS[1]) != rolled(rolled("", IDS[1]), IDS[0])
    assert rolled(rolled("", IDS[0]), IDS[1]) != rolled("", np.concatenate([IDS[0], IDS[1]]))


def test_the_hash_does_not_depend_on_how_ids_lie_in_memory() -> None:
    assert rolled("", IDS[0].astype(">i8")) == rolled("", IDS[0].astype(np.int32)) == rolled("", IDS[0])
    assert rolled("", np.repeat(IDS[0], 2)[::2]) == rolled("", IDS[0])


def test_a_resumed_ledger_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Progress(), plan(2))
    consume(ledger, gathered(IDS[:4], 2, 1, 1))
    resumed = Ledger(path, ledger.progress, plan(1), {"seed": 1})
    consume(resumed, gathered(IDS[4:], 1, 1, 1), skipped=(1,))
    assert resumed.progress == Progress(NUM_STEPS, NUM_STEPS * GLOBAL_BATCH_SIZE, final_hash(1, 1, 1, []))
    lines = lines_of(path)
    assert [(line.get("first_step"), line["step"]) for line in lines] == [(None, 0), (1, 4), (None, 4), (5, 6)]
    assert [line["num_replicas"] for line in lines] == [2, 2, 1, 1]
    assert lines[2]["seed"] == 1 and lines[3]["skipped_updates"] == [6]
    assert lines[-1]["hash"] == resumed.progress.ledger_hash


def test_what_was_lost_after_the_checkpoint_is_taken_back_and_earlier_starts_stay(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Progress(), plan(1))
    consume(ledger, gathered(IDS[:2], 1, 1, 1))
    saved = ledger.progress
    Ledger(path, saved, plan(1))
    consume(ledger, gathered(IDS[2:3], 1, 1, 1))
    with path.open("a") as file:
        file.write('{"first_step": 4, "st')  # a kill in the middle of a line
    again = Ledger(path, saved, plan(1))
    assert again.progress == saved
    assert [(line.get("event"), line["step"]) for line in lines_of(path)] == [
        ("start", 0),
        (None, 2),
        ("start", 2),
        ("start", 2),
    ]


def test_a_rollback_steps_over_the_samples_up_to_the_update_that_diverged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Progress(), plan(1))
    consume(ledger, gathered(IDS[:2], 1, 1, 1))
    target = replace(ledger.progress, validation={"loss": 2.0})
    consume(ledger, gathered(IDS[2:5], 1, 1, 1))
    rollback = ledger.roll_back(target, Divergence(step=4, begun=3, reason="loss nan"))
    size = GLOBAL_BATCH_SIZE
    assert rollback == Rollback(4, 2, first_sample=2 * size, num_samples=2 * size, reason="loss nan")
    assert ledger.progress.num_samples == 4 * size and ledger.progress.step == 2
    assert ledger.progress.ledger_hash == stepped_over(target.ledger_hash, 2 * size, 2 * size)
    assert ledger.progress.rollbacks == (rollback,) and ledger.progress.validation == {"loss": 2.0}
    consume(ledger, gathered(IDS[4:], 1, 1, 1))
    last = lines_of(path)[-1]
    assert (last["first_step"], last["step"], last["first_sample"], last["num_samples"]) == (3, 4, 4 * size, 6 * size)


def test_a_ledger_that_is_gone_begins_at_the_checkpoint_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rollbacks = (Rollback(4, 2, 144, 144, "loss nan"),)
    Ledger(tmp_path / "ledger.jsonl", Progress(5, 504, "ab" * 32, rollbacks=rollbacks), plan(1))
    (line,) = lines_of(tmp_path / "ledger.jsonl")
    assert line["event"] == "start" and line["rollbacks"][0]["from_step"] == 4
    assert "does not reach back beyond step 5" in caplog.text


def test_only_the_chief_writes(tmp_path: Path) -> None:
    consume(Ledger(None, Progress(), plan(1)), gathered(IDS, 1, 1, 1))
    assert not list(tmp_path.iterdir())
