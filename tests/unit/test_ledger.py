"""The ledger: a hash of what was really consumed that knows neither replicas nor stops."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from trainer.checkpoint import Progress
from trainer.config import BatchPlan
from trainer.ledger import Ledger, rolled

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
        ledger.consume(gathered(IDS[first:last], num_processes, replicas_each, num_micro_batches))
    return ledger.progress(None).ledger_hash


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
    ledger.consume(gathered(IDS[:4], 2, 1, 1))
    resumed = Ledger(path, ledger.progress(None), plan(1))
    resumed.consume(gathered(IDS[4:], 1, 1, 1))
    progress = resumed.progress(1.5)
    assert progress == Progress(NUM_STEPS, NUM_STEPS * GLOBAL_BATCH_SIZE, final_hash(1, 1, 1, []), 1.5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line.get("first_step"), line["step"]) for line in lines] == [(None, 0), (1, 4), (None, 4), (5, 6)]
    assert [line["num_replicas"] for line in lines] == [2, 2, 1, 1]
    assert lines[-1]["hash"] == progress.ledger_hash


def test_only_the_chief_writes(tmp_path: Path) -> None:
    Ledger(None, Progress(), plan(1)).consume(gathered(IDS, 1, 1, 1))
    assert not list(tmp_path.iterdir())
