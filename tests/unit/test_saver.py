"""Saving while training goes on: what is saved, what happens when it cannot be, and what is never lost. No TensorFlow."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_examples import checkpoint, small_disk
from trainer.checkpoint import Checkpoint, list_checkpoints, newest_good, read_checkpoint, verify_checkpoint
from trainer.config import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.saver import CheckpointSaver

# Saves with a limit on the size of files, which no disk need be full for, and says how it went.
LIMITED = """
import resource, sys
from pathlib import Path
from tests.checkpoint_examples import checkpoint
from trainer.config import CheckpointConfig
from trainer.saver import CheckpointSaver
saver = CheckpointSaver(Path(sys.argv[1]), CheckpointConfig())
saver.save(checkpoint(1), {})
saver.wait()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
for step in (2, 3):
    saver.save(checkpoint(step, num_weights=100_000), {})
    saver.wait()
    print("failures", saver.failures)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
saver.save(checkpoint(4, num_weights=100_000), {})
saver.close()
print("failures", saver.failures)
"""

# Ends with an error of its own while a save is under way.
ENDS_AT_ONCE = """
import sys
from pathlib import Path
from tests.checkpoint_examples import checkpoint
from trainer.config import CheckpointConfig
from trainer.saver import CheckpointSaver
CheckpointSaver(Path(sys.argv[1]), CheckpointConfig()).save(checkpoint(1, num_weights=8_000_000), {})
raise KeyError("a fault of the loop")
"""


def large(step: int) -> Checkpoint:
    """Of 256 MB: its writing takes long enough to be looked at."""
    return replace(checkpoint(step), weights={f"weight.{number}": np.ones((1000, 4000), np.float32) for number in range(16)})


def test_a_save_goes_on_in_the_background(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = CheckpointSaver(tmp_path, CheckpointConfig())
    written = large(1)
    with caplog.at_level(logging.INFO):
        began = time.perf_counter()
        saver.save(written, {"world_size": 2})
        blocked = time.perf_counter() - began
        assert saver.is_busy
        assert not list_checkpoints(tmp_path)
        saver.wait()
        took = time.perf_counter() - began
    assert not saver.is_busy
    print(f"\nsave() returned after {blocked * 1e3:.2f} ms, the checkpoint was there after {took * 1e3:.0f} ms")
    assert blocked < saver.blocked_seconds <= took
    assert read_checkpoint(newest_good(tmp_path) or tmp_path).progress == written.progress
    assert f"saved {tmp_path / 'step-00000001'} (" in caplog.text


def test_in_the_foreground_it_is_there_when_save_returns(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, CheckpointConfig(background=False))
    before = threading.active_count()
    saver.save(checkpoint(1), {})
    assert threading.active_count() == before and not saver.is_busy
    assert [info.problem for info in list_checkpoints(tmp_path)] == [None]


def test_one_save_at_a_time_and_each_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    saver = CheckpointSaver(tmp_path, CheckpointConfig(keep_last=10))
    weights = {"weight": np.ones((4000, 4000), np.float32)}
    for step in range(1, 6):
        saver.save(replace(checkpoint(step), weights=weights), {})
        assert [info.step for info in list_checkpoints(tmp_path)][: step - 1] == list(range(1, step))
    saver.close()
    assert [verify_checkpoint(info.path) for info in list_checkpoints(tmp_path)] == [None] * 5
    assert "training waits: the save before is under way for " in caplog.text


def test_what_training_does_meanwhile_does_not_change_what_is_saved(tmp_path: Path) -> None:
    """The loop makes new arrays and puts them into the mapping that it handed over."""
    saver = CheckpointSaver(tmp_path, CheckpointConfig())
    weights = {f"weight.{number}": np.full(1_000_000, 1.0, np.float32) for number in range(16)}
    optimizer = {f"moment.{number}": np.full(1_000_000, 1.0, np.float32) for number in range(16)}
    saver.save(replace(checkpoint(1), weights=weights, optimizer=optimizer), {})
    update = 1.0
    while saver.is_busy:
        update += 1.0
        for mapping in (weights, optimizer):
            for name in mapping:
                mapping[name] = mapping[name] + 1.0
    assert update > 1.0
    saved = read_checkpoint(tmp_path / "step-00000001")
    assert all((array == 1.0).all() for array in (*saved.weights.values(), *saved.optimizer.values()))
    assert len(saved.weights) == len(saved.optimizer) == 16


def test_what_need_not_be_kept_is_deleted(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, CheckpointConfig(keep_last=2, keep_best=1))
    for step, loss in enumerate((4.0, 1.0, 3.0, 2.0, 5.0), start=1):
        saver.save(checkpoint(step, loss), {})
    saver.close()
    assert [info.step for info in list_checkpoints(tmp_path)] == [2, 4, 5]


def test_on_a_full_disk_training_goes_on_until_it_failed_too_often(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", "1m") as directory:
        saver = CheckpointSaver(directory, CheckpointConfig())
        saver.save(checkpoint(1), {})
        saver.wait()
        (directory / "of someone else").write_bytes(bytes(900_000))
        for failures in (1, 2, 3):
            saver.refuse_failing()
            saver.save(checkpoint(1 + failures, num_weights=100_000), {})
            saver.wait()
            assert saver.failures == failures
            assert [info.step for info in list_checkpoints(directory)] == [1]
        assert newest_good(directory) == directory / "step-00000001"
        with pytest.raises(
            CheckpointError, match=r"the last 3 saves failed \(.*No space left.*newest checkpoint is that of step 1"
        ):
            saver.refuse_failing()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert warnings[0].startswith("could not save step 2: [Errno 28] No space left on device")
    assert warnings[0].endswith("; the newest checkpoint is that of step 1; training goes on")
    assert "\n" not in warnings[0]


def test_after_room_was_made_the_count_begins_anew(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as directory:
        saver = CheckpointSaver(directory, CheckpointConfig())
        fill = directory / "of someone else"
        fill.write_bytes(bytes(900_000))
        for step in (1, 2):
            saver.save(checkpoint(step, num_weights=100_000), {})
        saver.wait()
        assert saver.failures == 2
        fill.unlink()
        saver.save(checkpoint(3, num_weights=100_000), {})
        saver.wait()
        assert saver.failures == 0
        saver.refuse_failing()
        assert os.listdir(directory) == ["step-00000003"]
        saver.close()


def test_a_limit_on_the_size_of_files_is_a_failure_like_others(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["failures 1", "failures 2", "failures 0"]
    assert "could not save step 2: [Errno 27] File too large" in run.stderr
    assert [info.step for info in list_checkpoints(tmp_path)] == [1, 4]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_where_nothing_was_ever_saved_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    saver = CheckpointSaver(tmp_path / "file" / "checkpoints", CheckpointConfig(max_failures=1))
    saver.save(checkpoint(1), {})
    saver.wait()
    assert saver.failures == 1
    assert "could not save step 1" in caplog.text
    with pytest.raises(CheckpointError, match="the last 1 saves failed"):
        saver.refuse_failing()


@pytest.mark.parametrize("call", ["save", "wait", "refuse_failing", "close"])
def test_a_fault_in_the_background_is_raised_by_the_next_call(tmp_path: Path, call: str) -> None:
    saver = CheckpointSaver(tmp_path, CheckpointConfig())
    saver.save(replace(checkpoint(1), optimizer={"phases": np.zeros(3, np.complex64)}), {})
    while saver.is_busy:
        time.sleep(0.001)
    with pytest.raises(TypeError, match="phases"):
        saver.save(checkpoint(2), {}) if call == "save" else getattr(saver, call)()
    assert saver.failures == 0
    saver.save(checkpoint(3), {})
    saver.close()
    assert [info.step for info in list_checkpoints(tmp_path)] == [3]


def test_a_run_that_ends_with_an_error_first_ends_its_save(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "a fault of the loop" in run.stderr
    assert newest_good(tmp_path) == tmp_path / "step-00000001"
