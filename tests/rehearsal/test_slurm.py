"""The batch script under a real Slurm: a job saves when its time is nearly up, is queued again and goes on; one that is
cancelled saves and stays away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rehearsal.batch_system import BatchSystem, batch_system, find_missing
from tests.rehearsal.conftest import Rehearsed
from tests.rehearsal.run import STEPS, Workshop, compare
from tests.training import BIN

pytestmark = pytest.mark.slurm

AGAIN = "Stopped before the end: queued again."
_TOLERANCE = 1e-5


@pytest.fixture
def slurm(privacy: None, workshop: Workshop, tmp_path: Path) -> Iterator[BatchSystem]:
    missing = find_missing()
    if missing is not None:
        pytest.skip(f"Slurm {missing}")
    with batch_system(tmp_path / "slurm", workshop.directory) as system:
        yield system


def script(workshop: Workshop, *overrides: str) -> str:
    setup = f'export PATH="{BIN}:$PATH"'
    return workshop.drumline("launch", "slurm", "config.yaml", *overrides, "--nodes", "2", "--cpus", "1", "--setup", setup)


def test_a_job_whose_time_is_nearly_up_is_queued_again_and_a_cancelled_one_is_not(
    slurm: BatchSystem, workshop: Workshop, reference: Workshop, rehearsed: Rehearsed
) -> None:
    rehearsed.what = "Slurm, 2 nodes x 1, queued again"
    job = slurm.submit(script(workshop))
    slurm.wait_until(lambda: workshop.step >= 5, job)
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does so long before the limit as --signal says
    slurm.wait_until(lambda: slurm.state(job) == "PENDING", job)
    assert slurm.output(job).count(AGAIN) == 1
    assert 5 <= workshop.step < STEPS
    assert (workshop.run / "checkpoints" / f"step-{workshop.step:08d}").is_dir()
    assert not list(workshop.run.glob(".secret-*"))
    # It begins again two minutes later: until then a node may refuse a job that has just ended there.
    slurm.wait_until(lambda: slurm.state(job) == "COMPLETED", job, 300.0)
    assert "going on from" in slurm.output(job)
    rehearsed.difference = compare(workshop.run, reference.run)
    assert rehearsed.difference < _TOLERANCE
    workshop.drumline("verify", str(workshop.run))

    run = workshop.directory / "runs" / "cancelled"
    job = slurm.submit(script(workshop, "run.name=cancelled", "train.steps=100000"))
    slurm.wait_until((run / "metrics.jsonl").exists, job)
    slurm.run("scancel", job)
    slurm.wait_until(lambda: slurm.state(job) == "CANCELLED", job)
    slurm.wait_until(lambda: "start it again and it goes on" in slurm.output(job), job)
    assert AGAIN not in slurm.output(job)
