"""Checkpoints behind URLs: fsspec's memory:// and, through fsspec, a folder of this disk. No TensorFlow."""

from __future__ import annotations

import logging
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from tests.checkpoint_examples import checkpoint, spoil, write
from trainer.checkpoint import (
    choose_checkpoint,
    discard_after,
    list_checkpoints,
    newest_good,
    prune_checkpoints,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from trainer.config import CheckpointConfig
from trainer.errors import CheckpointError
from trainer.location import listing, make_location, open_location, os_errors


@pytest.fixture(params=["memory", "folder"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Nothing is there yet. Behind `folder` is a store that has real folders, as SFTP has, which must be made."""
    if request.param == "memory":
        return open_location(f"memory://{uuid.uuid4()}/run/checkpoints")
    return UPath(f"file://{tmp_path}/run/checkpoints")


def test_a_path_is_a_path_and_a_url_is_not() -> None:
    assert open_location("runs/a/checkpoints") == Path("runs/a/checkpoints")
    assert open_location("file:///mnt/runs") == Path("/mnt/runs")
    assert isinstance(open_location("file:///mnt/runs"), Path)
    assert str(open_location("memory://runs/a")) == "memory://runs/a"


@pytest.mark.parametrize("url", ["s4://bucket/run", "://bucket", "://"])
def test_a_file_system_that_nobody_knows_is_said_to_be_so(url: str) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.directory: .*expected a path, or a URL"):
        open_location(url)


def test_a_package_that_is_missing_is_named() -> None:
    program = "import sys; sys.modules['s3fs'] = None; from trainer.location import open_location; open_location('s3://b/run')"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = run.stderr.splitlines()[-1]
    assert "CheckpointError" in last and "s3://" in last and "pip install 'drumline[s3]'" in last


def test_a_local_run_loads_nothing_of_the_packages_for_urls() -> None:
    program = "import sys, trainer.saver, trainer.checkpoint_lock; print({'upath', 'fsspec', 's3fs'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_what_is_written_is_read_back(directory: Path) -> None:
    written = checkpoint(12, loss=3.25)
    path = write_checkpoint(directory, written, {"world_size": 2})
    assert path == directory / "step-00000012"
    assert set(listing(directory)) == {path.name}
    assert verify_checkpoint(path) is None
    read = read_checkpoint(path)
    assert (read.progress, read.identity) == (written.progress, written.identity)
    for ours, theirs in ((read.weights, written.weights), (read.optimizer, written.optimizer)):
        assert {name: array.tobytes() for name, array in ours.items()} == {name: a.tobytes() for name, a in theirs.items()}
    (info,) = list_checkpoints(directory)
    assert (info.step, info.problem, info.validation["loss"]) == (12, None, 3.25)
    assert info.num_bytes == sum(size or 0 for size in listing(path).values())


def test_where_nothing_is_there_is_no_checkpoint(directory: Path) -> None:
    assert list_checkpoints(directory) == []
    assert newest_good(directory) is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "half a manifest", "empty manifest", "missing"])
def test_a_damaged_checkpoint_is_passed_over(directory: Path, damage: str) -> None:
    _, good, damaged = write(directory, 1, 2, 3)
    spoil(damaged, damage)
    assert verify_checkpoint(damaged) is not None
    assert newest_good(directory) == good == choose_checkpoint(directory, "latest")
    assert write(directory, 3) == [damaged]
    assert newest_good(directory) == damaged


def test_one_without_manifest_was_never_finished(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (only,) = write(directory, 7)
    spoil(only, "no manifest")
    with caplog.at_level(logging.WARNING):
        assert newest_good(directory) is None, "the first save was cut short: there is nothing to go on from"
    assert "step-00000007" in caplog.text and "cut short" in caplog.text
    (good,) = write(directory, 5)
    assert newest_good(directory) == good
    assert write(directory, 7) == [only] and verify_checkpoint(only) is None


def test_where_every_finished_one_is_damaged_there_is_no_new_beginning(directory: Path) -> None:
    one, two = write(directory, 1, 2)
    spoil(one, "flipped")
    spoil(two, "no manifest")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is good"):
        newest_good(directory)


def test_pruning_and_discarding_delete_what_they_should(directory: Path) -> None:
    for step, loss in ((1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, 3.5)):
        write_checkpoint(directory, checkpoint(step, loss), {})
    write(directory, 6)
    spoil(directory / "step-00000006", "no manifest")
    prune_checkpoints(directory, CheckpointConfig(keep_last=2, keep_best=1))
    assert [info.step for info in list_checkpoints(directory)] == [2, 4, 5]
    discard_after(directory, 2)
    assert set(listing(directory)) == {"step-00000002"}


def test_a_write_that_fails_leaves_nothing(directory: Path) -> None:
    (good,) = write(directory, 1)
    large = np.ones(300_000, np.float32)
    unwritable = {"a": large, "phases": large.astype(np.complex64)}
    with pytest.raises(TypeError):
        write_checkpoint(directory, replace(checkpoint(2), optimizer=unwritable), {})
    assert set(listing(directory)) == {good.name}


def test_the_first_name_behind_a_url_is_not_made(tmp_path: Path) -> None:
    """A bucket whose name was mistyped must not come into being. On this file system the first name is a folder of root."""
    missing = UPath("file:///drumline-no-such-bucket/run/checkpoints")
    with pytest.raises(OSError):
        make_location(missing)
    assert not Path("/drumline-no-such-bucket").exists()


def test_errors_of_packages_behind_urls_are_os_errors() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    for error in (exceptions.EndpointConnectionError(endpoint_url="http://gone"), exceptions.NoCredentialsError()):
        with pytest.raises(OSError, match=type(error).__name__), os_errors():
            raise error
    with pytest.raises(KeyError), os_errors():
        raise KeyError("a fault of ours")
