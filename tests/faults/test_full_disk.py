"""A disk that is full, or may not be written any more: training goes on without saving, and saves again when it can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.gang import Gang, command
from tests.faults.outcome import assert_ledger_in_order, good_steps, last_step, saved_steps
from tests.training import run_path, train_losses, training_config, write_config
from trainer.checkpoint import list_checkpoints, verify_checkpoint
from trainer.config import Config

pytestmark = pytest.mark.processes

NUM_STEPS = 1500
DISK_BYTES = 8 * 2**20
FAILED = re.compile(r"could not save step (\d+): .*; training goes on")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for a run and a few checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def saves_on(store: Path, name: str, runs: Path, **checkpoint: object) -> Config:
    return training_config(
        store,
        name,
        run={"directory": str(runs)},
        train={"steps": NUM_STEPS},
        evaluation={"every": 500},
        checkpoint={"every": 25, "keep_last": 2, "keep_best": 0} | checkpoint,
    )


def test_while_the_disk_is_full_it_trains_on_and_saves_again_when_there_is_room(
    store: Path, small_disk: Path, figures: Figures
) -> None:
    """Metrics, ledger and charts are on that disk, too."""
    config = saves_on(store, "full-for-a-while", small_disk / "runs", max_failures=1000)
    run = run_path(config)
    with Gang(command("train", write_config(config, store / "full-for-a-while.yaml")), store) as gang:
        gang.wait_until(lambda: len(saved_steps(run)) >= 2)
        filler = fill(small_disk)
        gang.wait_until(lambda: len(FAILED.findall(gang.output)) >= 3)
        assert saved_steps(run), "the last checkpoints are gone"
        assert good_steps(run) == set(saved_steps(run))
        step = step_on_console(gang.output)
        gang.wait_until(lambda: step_on_console(gang.output) > step)
        filler.unlink()
        newest = max(saved_steps(run))
        gang.wait_until(lambda: max(saved_steps(run), default=0) > newest)
        assert gang.wait() == 0, gang.output[-3000:]
        num_failed = len(FAILED.findall(gang.output))
        assert "can be written again; no line of it is lost" in gang.output
    assert list(train_losses(run)) == list(range(1, NUM_STEPS + 1))
    assert_ledger_in_order(run)
    assert max(good_steps(run)) == NUM_STEPS
    figures.add("full disk for a while", saves_that_failed=num_failed, exit_code=0, lines_lost=0)


def test_the_third_failure_in_a_row_ends_the_run_with_2_and_one_line(store: Path, small_disk: Path, figures: Figures) -> None:
    config = saves_on(store, "full", small_disk / "runs")
    run, start = run_path(config), command("train", write_config(config, store / "full.yaml"))
    with Gang(start, store) as gang:
        gang.wait_until(lambda: len(saved_steps(run)) >= 2)
        filler = fill(small_disk)
        assert gang.wait(60.0) == 2
        output = gang.output
    told = [line for line in output.splitlines() if line.startswith("drumline: ")]
    assert len(told) == 1 and "the last 3 saves failed" in told[0] and "No space left" in told[0]
    assert len(FAILED.findall(output)) == 3 and "Traceback" not in output
    assert good_steps(run) and f"that of step {max(good_steps(run))}" in told[0]

    with Gang(start, store) as gang:  # while it is still full
        assert gang.wait(60.0) == 2
        assert "Traceback" not in gang.output and "No space left" in gang.output
    assert good_steps(run)
    filler.unlink()
    with Gang(start, store) as gang:
        assert gang.wait() == 0, gang.output[-3000:]
    assert list(train_losses(run)) == list(range(1, NUM_STEPS + 1))
    assert_ledger_in_order(run)
    figures.add("full disk for good", saves_that_failed=3, exit_code=2)


def test_a_folder_that_may_not_be_written_any_more_is_like_a_full_disk(store: Path, tmp_path: Path, figures: Figures) -> None:
    directory = tmp_path / "checkpoints"
    config = saves_on(store, "read-only", tmp_path / "runs", directory=str(directory), max_failures=1000)
    start = [*without_privilege(), *command("train", write_config(config, store / "read-only.yaml"))]
    with Gang(start, store) as gang:
        gang.wait_until(lambda: len(list_checkpoints(directory)) >= 2)
        directory.chmod(0o555)
        gang.wait_until(lambda: len(FAILED.findall(gang.output)) >= 3)
        before = list_checkpoints(directory)
        assert before and not any(verify_checkpoint(info.path) for info in before)
        assert last_step(run_path(config)) > before[-1].step
        directory.chmod(0o755)
        gang.wait_until(lambda: list_checkpoints(directory)[-1].step > before[-1].step)
        assert gang.wait() == 0, gang.output[-3000:]
        num_failed = len(FAILED.findall(gang.output))
    assert list_checkpoints(directory)[-1].step == NUM_STEPS
    assert_ledger_in_order(run_path(config))
    figures.add("read-only folder for a while", saves_that_failed=num_failed, exit_code=0)


def fill(disk: Path) -> Path:
    """A file that takes all the room there is, also what is given up in the next moments."""
    filler = disk / "filler"
    for _ in range(20):
        with filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:  # it is full
                time.sleep(0.02)
    return filler


def step_on_console(output: str) -> int:
    return max((int(number) for number in re.findall(r"step +(\d+)/", output)), default=0)


def without_privilege() -> list[str]:
    """What makes permissions bind for root, too."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind for root, and there is no setpriv to change that")
    return ["setpriv", "--bounding-set=-dac_override"]
