"""Checkpoints: whole or not there, verified when they are read, the newest and the best kept. No TensorFlow."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_examples import checkpoint, small_disk, spoil, write
from trainer.checkpoint import (
    MANIFEST,
    choose_checkpoint,
    discard_after,
    list_checkpoints,
    newest_good,
    prune_checkpoints,
    read_checkpoint,
    read_weights,
    verify_checkpoint,
    write_checkpoint,
)
from trainer.config import CheckpointConfig
from trainer.errors import CheckpointError

# Writes checkpoints one after another, large enough that a kill often falls into one, until it is killed.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from trainer.checkpoint import Checkpoint, list_checkpoints, prune_checkpoints, write_checkpoint
from trainer.config import CheckpointConfig
from trainer.progress import Progress
directory = Path(sys.argv[1])
infos = list_checkpoints(directory)
step = infos[-1].step if infos else 0
arrays = {f"weight.{number}": np.full(200_000, number, np.float32) for number in range(8)}
while True:
    step += 1
    print("writing", flush=True)
    write_checkpoint(directory, Checkpoint(arrays, arrays, Progress(step, step * 8, "ab" * 32), {"seed": 1}), {})
    # As a resumed run does that comes to a step whose checkpoint is there already.
    write_checkpoint(directory, Checkpoint(arrays, arrays, Progress(step, step * 8, "cd" * 32), {"seed": 1}), {})
    prune_checkpoints(directory, CheckpointConfig(keep_last=3, keep_best=0))
"""


def policy(keep_last: int, keep_best: int = 0, keep_every: int | None = None, metric: str = "loss") -> CheckpointConfig:
    given = {"keep_last": keep_last, "keep_best": keep_best, "keep_every": keep_every, "best_metric": metric}
    return CheckpointConfig.model_validate(given)


def steps_in(directory: Path) -> list[int]:
    return [info.step for info in list_checkpoints(directory)]


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    written = checkpoint(12, loss=3.25)
    path = write_checkpoint(tmp_path, written, {"num_replicas": 2})
    assert path == tmp_path / "step-00000012"
    read = read_checkpoint(path)
    assert read.progress == written.progress
    assert read.identity == written.identity
    for ours, theirs in ((read.weights, written.weights), (read.optimizer, written.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
        assert all(ours[name].shape == theirs[name].shape for name in ours)
    assert read_weights(path).keys() == written.weights.keys()


def test_weights_to_evaluate_are_the_averages_where_there_are_some(tmp_path: Path) -> None:
    written = checkpoint(12)
    average = {"average/gain": np.full(4, 0.25, np.float32)}
    path = write_checkpoint(tmp_path, replace(written, optimizer={**written.optimizer, **average}), {})
    weights = read_weights(path)
    assert list(weights) == list(read_checkpoint(path).weights)
    np.testing.assert_array_equal(weights["gain"], average["average/gain"])
    np.testing.assert_array_equal(weights["token_embedding"], written.weights["token_embedding"])
    np.testing.assert_array_equal(read_checkpoint(path).weights["gain"], written.weights["gain"])
    assert read_checkpoint(path).optimizer.keys() == written.optimizer.keys() | average.keys()


def test_the_manifest_names_every_file_with_size_and_hash(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(3, loss=1.5), {"world_size": 2, "config_sha256": "ab" * 32})
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 3 and manifest["context"] == {"world_size": 2, "config_sha256": "ab" * 32}
    assert manifest["validation"] == {"loss": 1.5, "perplexity": math.exp(1.5)}
    assert set(manifest["files"]) == {file.name for file in path.iterdir()} - {MANIFEST}
    for name, described in manifest["files"].items():
        content = (path / name).read_bytes()
        assert described == {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert os.listdir(tmp_path) == [path.name]


def test_a_whole_checkpoint_has_nothing_wrong_with_it(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    assert verify_checkpoint(path) is None
    assert [info.problem for info in list_checkpoints(tmp_path)] == [None]


def test_where_no_checkpoint_is_good_there_is_no_silent_new_beginning(tmp_path: Path) -> None:
    for path, damage in zip(write(tmp_path, 1, 2, 3), ("truncated", "flipped", "no manifest"), strict=True):
        spoil(path, damage)
    with pytest.raises(CheckpointError) as error:
        newest_good(tmp_path)
    assert all(f"step-0000000{step}" in str(error.value) for step in (1, 2, 3))
    assert "\n" not in str(error.value)


def test_a_folder_without_checkpoints_has_no_newest_one(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    assert newest_good(tmp_path / "missing") is None


def test_checkpoints_are_chosen_by_step_latest_and_best(tmp_path: Path) -> None:
    for step, loss in ((10, 2.0), (20, 1.0), (30, 1.5)):
        write_checkpoint(tmp_path, checkpoint(step, loss), {})
    chosen = {which: choose_checkpoint(tmp_path, which).name for which in ("latest", "best", "10")}
    assert chosen == {"latest": "step-00000030", "best": "step-00000020", "10": "step-00000010"}


@pytest.mark.parametrize("which", ["40", "best", "newest"])
def test_a_checkpoint_that_is_not_there_is_said_to_be_missing(tmp_path: Path, which: str) -> None:
    write(tmp_path, 10, 20)
    with pytest.raises(CheckpointError, match=r"10, 20|expected latest, best"):
        choose_checkpoint(tmp_path, which)


def test_the_best_is_not_one_that_is_damaged_beyond_reading(tmp_path: Path) -> None:
    for step, loss in ((10, 2.0), (20, 1.0)):
        write_checkpoint(tmp_path, checkpoint(step, loss), {})
    (tmp_path / "step-00000020" / MANIFEST).unlink()
    assert choose_checkpoint(tmp_path, "best").name == "step-00000010"


def test_pruning_keeps_the_newest_and_the_best_and_clears_what_kills_left(tmp_path: Path) -> None:
    for step, loss in ((1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, None), (6, 3.5)):
        write_checkpoint(tmp_path, checkpoint(step, loss), {})
    leftover = tmp_path / ".step-00000007.partial"
    leftover.mkdir()
    deleted = prune_checkpoints(tmp_path, policy(keep_last=2, keep_best=1))
    assert steps_in(tmp_path) == [2, 5, 6]
    assert [path.name for path in deleted] == ["step-00000001", "step-00000003", "step-00000004"]
    assert not leftover.exists()
    prune_checkpoints(tmp_path, policy(keep_last=1))
    assert steps_in(tmp_path) == [6]


def test_pruning_keeps_the_milestones(tmp_path: Path) -> None:
    write(tmp_path, *range(10, 101, 10))
    prune_checkpoints(tmp_path, policy(keep_last=2, keep_every=40))
    assert steps_in(tmp_path) == [40, 80, 90, 100]


def test_the_best_stays_however_old_it_is(tmp_path: Path) -> None:
    for step in range(1, 12):
        write_checkpoint(tmp_path, checkpoint(step, loss=1.0 if step == 2 else 2.0 + step), {})
        prune_checkpoints(tmp_path, policy(keep_last=1, keep_best=1))
        assert choose_checkpoint(tmp_path, "best").name == f"step-{min(step, 2):08d}"
    assert steps_in(tmp_path) == [2, 11]


def test_the_best_goes_by_the_metric_that_is_asked_for(tmp_path: Path) -> None:
    for step, loss, perplexity in ((1, 3.0, 5.0), (2, 1.0, 9.0), (3, 2.0, 7.0)):
        plain = checkpoint(step)
        progress = replace(plain.progress, validation={"loss": loss, "perplexity": perplexity})
        write_checkpoint(tmp_path, replace(plain, progress=progress), {})
    assert choose_checkpoint(tmp_path, "best").name == "step-00000002"
    assert choose_checkpoint(tmp_path, "best", metric="perplexity").name == "step-00000001"
    prune_checkpoints(tmp_path, policy(keep_last=1, keep_best=1, metric="perplexity"))
    assert steps_in(tmp_path) == [1, 3]


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, float("nan")), (2, 4.0), (3, float("nan")), (4, None), (5, float("-inf"))):
        plain = checkpoint(step)
        validation = {} if loss is None else {"loss": loss}
        write_checkpoint(tmp_path, replace(plain, progress=replace(plain.progress, validation=validation)), {})
        assert verify_checkpoint(tmp_path / f"step-{step:08d}") is None
    assert choose_checkpoint(tmp_path, "best").name == "step-00000002"


@pytest.mark.parametrize("damage", ["no manifest", "truncated", "missing"])
def test_pruning_never_deletes_the_only_good_checkpoint(tmp_path: Path, damage: str) -> None:
    good, *damaged = write(tmp_path, 1, 2, 3)
    for path in damaged:
        spoil(path, damage)
    prune_checkpoints(tmp_path, policy(keep_last=2, keep_best=1))
    assert newest_good(tmp_path) == good


def test_pruning_deletes_nothing_where_nothing_is_good(tmp_path: Path) -> None:
    for path in write(tmp_path, 1, 2, 3):
        spoil(path, "no manifest")
    prune_checkpoints(tmp_path, policy(keep_last=1))
    assert len(list_checkpoints(tmp_path)) == 3


def test_a_good_checkpoint_of_the_same_step_is_kept(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 5)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert write_checkpoint(tmp_path, checkpoint(5, loss=1.0), {}) == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no manifest", "missing", "empty"])
def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path, damage: str) -> None:
    (path,) = write(tmp_path, 5)
    spoil(path, damage)
    assert write_checkpoint(tmp_path, checkpoint(5, loss=1.0), {}) == path
    assert verify_checkpoint(path) is None
    assert read_checkpoint(path).progress.validation["loss"] == 1.0
    assert os.listdir(tmp_path) == [path.name]


def test_the_newest_before_a_step_is_found(tmp_path: Path) -> None:
    one, two, three = write(tmp_path, 10, 20, 30)
    assert newest_good(tmp_path, before_step=31) == three
    assert newest_good(tmp_path, before_step=30) == two
    assert newest_good(tmp_path, before_step=10) is None
    spoil(two, "flipped")
    assert newest_good(tmp_path, before_step=30) == one
    spoil(one, "truncated")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints before step 30 is good"):
        newest_good(tmp_path, before_step=30)


def test_what_was_saved_after_a_step_is_discarded(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30, 40)
    assert [path.name for path in discard_after(tmp_path, 20)] == ["step-00000040", "step-00000030"]
    assert steps_in(tmp_path) == [10, 20]
    assert discard_after(tmp_path, 20) == []


def test_a_write_that_fails_leaves_nothing_and_the_others_as_they_were(tmp_path: Path) -> None:
    (good,) = write(tmp_path, 1)
    unwritable = replace(checkpoint(2), optimizer={"phases": np.zeros(2, np.complex64)})
    with pytest.raises(TypeError):
        write_checkpoint(tmp_path, unwritable, {})
    assert os.listdir(tmp_path) == [good.name]
    assert verify_checkpoint(good) is None


def test_a_disk_that_becomes_read_only_is_an_os_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as directory:
        (good,) = write(directory, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
        with pytest.raises(OSError, match="Read-only"):
            write(directory, 2)
        assert steps_in(directory) == [1] and newest_good(directory) == good


def test_a_full_disk_is_an_os_error_and_leaves_room_for_the_next(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as directory:
        (good,) = write(directory, 1)
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(directory, checkpoint(2, num_weights=400_000), {})
        assert os.listdir(directory) == [good.name] and verify_checkpoint(good) is None
        write(directory, 3)
        assert steps_in(directory) == [1, 3]


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-copy").mkdir()
    assert [info.step for info in list_checkpoints(tmp_path)] == [5]


def test_killed_while_it_writes_no_checkpoint_is_half_there(tmp_path: Path) -> None:
    """A real process, killed at moments spread over several writes."""
    steps = [0]
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(2):  # the first is written when it begins with the second
            assert process.stdout.readline() == "writing\n"
        time.sleep(0.037 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        infos = list_checkpoints(tmp_path)
        assert [verify_checkpoint(info.path) for info in infos] == [None] * len(infos)
        before, steps = steps, [info.step for info in infos]
        assert steps and steps[-1] >= before[-1], "a checkpoint that was there before the kill is gone"
        assert steps == list(range(steps[0], steps[-1] + 1))
    partial = [name for name in os.listdir(tmp_path) if name.startswith(".")]
    print(f"\n8 kills: whole checkpoints of steps {steps}, unfinished: {partial}")
    assert steps[-1] >= 3
    prune_checkpoints(tmp_path, policy(keep_last=1))
    assert os.listdir(tmp_path) == [f"step-{steps[-1]:08d}"]
