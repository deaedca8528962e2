"""Checkpoints: whole or not there, verified when they are read, the newest and the best kept. No TensorFlow."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    Checkpoint,
    Progress,
    choose_checkpoint,
    list_checkpoints,
    newest_good,
    prune_checkpoints,
    read_checkpoint,
    read_weights,
    verify_checkpoint,
    write_checkpoint,
)
from trainer.errors import CheckpointError

# Writes checkpoints one after another, large enough that a kill often falls into one, until it is killed.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from trainer.checkpoint import Checkpoint, Progress, list_checkpoints, prune_checkpoints, write_checkpoint
directory = Path(sys.argv[1])
infos = list_checkpoints(directory)
step = infos[-1].step if infos else 0
arrays = {f"weight.{number}": np.full(200_000, number, np.float32) for number in range(8)}
print("ready", flush=True)
while True:
    step += 1
    write_checkpoint(directory, Checkpoint(arrays, arrays, Progress(step, step * 8, "ab" * 32), {"seed": 1}), {})
    # As a resumed run does that comes to a step whose checkpoint is there already.
    write_checkpoint(directory, Checkpoint(arrays, arrays, Progress(step, step * 8, "cd" * 32), {"seed": 1}), {})
    prune_checkpoints(directory, keep_last=3, keep_best=0)
"""


def checkpoint(step: int, validation_loss: float | None = None) -> Checkpoint:
    generator = np.random.default_rng(step)
    weights = {"token_embedding": generator.normal(size=(7, 4)).astype(np.float32), "gain": np.ones(4, np.float32)}
    optimizer = {"first_moments.gain": np.full(4, 0.5, np.float32), "loss_scale": np.asarray(2.0, np.float32)}
    return Checkpoint(weights, optimizer, Progress(step, 8 * step, "0f" * 32, validation_loss), {"seed": 1})


def write(directory: Path, *steps: int) -> list[Path]:
    return [write_checkpoint(directory, checkpoint(step), {"num_replicas": 2}) for step in steps]


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    written = checkpoint(12, validation_loss=3.25)
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


def test_the_manifest_names_every_file_with_size_and_hash(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 3)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 3 and manifest["context"] == {"num_replicas": 2}
    assert set(manifest["files"]) == {file.name for file in path.iterdir()} - {MANIFEST}
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]


def test_a_whole_checkpoint_has_nothing_wrong_with_it(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    assert verify_checkpoint(path) is None
    assert [info.problem for info in list_checkpoints(tmp_path)] == [None]


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE])
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, name: str) -> None:
    (path,) = write(tmp_path, 1)
    content = bytearray((path / name).read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        content[place] ^= 1
        (path / name).write_bytes(content)
        assert verify_checkpoint(path) == f"{name} has changed since it was written (its sha256 differs)"
        content[place] ^= 1
    (path / name).write_bytes(content)
    assert verify_checkpoint(path) is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no manifest", "half a manifest", "missing", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_newest_good_one_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    _, good, damaged = write(tmp_path, 1, 2, 3)
    spoil(damaged, damage)
    with caplog.at_level(logging.WARNING):
        assert newest_good(tmp_path) == good
        assert choose_checkpoint(tmp_path, "latest") == good
    assert str(damaged) in caplog.text and "damaged" in caplog.text
    with pytest.raises(CheckpointError, match=str(damaged)):
        choose_checkpoint(tmp_path, "3")


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
    prune_checkpoints(tmp_path, keep_last=2, keep_best=1)
    assert [info.step for info in list_checkpoints(tmp_path)] == [2, 5, 6]
    assert not leftover.exists()
    prune_checkpoints(tmp_path, keep_last=1, keep_best=0)
    assert [info.step for info in list_checkpoints(tmp_path)] == [6]


def test_pruning_never_deletes_the_only_good_checkpoint(tmp_path: Path) -> None:
    good, *damaged = write(tmp_path, 1, 2, 3)
    for path in damaged:
        spoil(path, "no manifest")
    prune_checkpoints(tmp_path, keep_last=2, keep_best=1)
    assert newest_good(tmp_path) == good


def test_pruning_deletes_nothing_where_nothing_is_good(tmp_path: Path) -> None:
    for path in write(tmp_path, 1, 2, 3):
        spoil(path, "no manifest")
    prune_checkpoints(tmp_path, keep_last=1, keep_best=0)
    assert len(list_checkpoints(tmp_path)) == 3


def test_a_checkpoint_is_replaced_by_one_of_the_same_step(tmp_path: Path) -> None:
    write(tmp_path, 5)
    again = write_checkpoint(tmp_path, checkpoint(5, validation_loss=1.0), {})
    assert verify_checkpoint(again) is None
    assert read_checkpoint(again).progress.validation_loss == 1.0


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
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.037 * number)
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
    prune_checkpoints(tmp_path, keep_last=1, keep_best=0)
    assert os.listdir(tmp_path) == [f"step-{steps[-1]:08d}"]


def spoil(path: Path, damage: str) -> None:
    weights = path / WEIGHTS
    match damage:
        case "flipped":
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        case "truncated":
            os.truncate(weights, weights.stat().st_size // 2)
        case "no manifest":
            (path / MANIFEST).unlink()
        case "half a manifest":
            os.truncate(path / MANIFEST, 40)
        case "missing":
            weights.unlink()
        case "empty":
            shutil.rmtree(path)
            path.mkdir()
