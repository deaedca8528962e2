"""Whatever happens to a checkpoint's files after they were written, it is found, named, and not loaded. No TensorFlow."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.checkpoint_examples import checkpoint, spoil, write
from trainer.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    choose_checkpoint,
    list_checkpoints,
    newest_good,
    verify_checkpoint,
    write_checkpoint,
)
from trainer.errors import CheckpointError

FILES = (MANIFEST, WEIGHTS, OPTIMIZER, STATE)


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "no manifest", "half a manifest", "empty manifest", "missing", "empty"]
)
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


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, name: str) -> None:
    """Every byte of the small files, and random bits of all; the seed is fixed, the places are spread."""
    (path,) = write(tmp_path, 1)
    good = (path / name).read_bytes()
    generator = random.Random(name)
    places = [(place, generator.randrange(8)) for place in range(len(good))]
    for place, bit in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << bit
        (path / name).write_bytes(damaged)
        problem = verify_checkpoint(path)
        assert problem is not None and name in problem, f"bit {bit} of byte {place} of {name}: {problem}"
    (path / name).write_bytes(good)
    assert verify_checkpoint(path) is None
    print(f"\n{len(places)} flipped bits in {name}: all found")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_lengthened_is_found(tmp_path: Path, name: str) -> None:
    (path,) = write(tmp_path, 1)
    good = (path / name).read_bytes()
    for length in (0, 1, len(good) // 2, len(good) - 1):
        (path / name).write_bytes(good[:length])
        problem = verify_checkpoint(path)
        assert problem is not None and name in problem, length
        assert list_checkpoints(tmp_path)[0].problem is not None, "seen without reading the file"
    for more in (b"\0", b"\n", b" "):
        (path / name).write_bytes(good + more)
        assert verify_checkpoint(path) is not None, more


@pytest.mark.parametrize("first", FILES)
@pytest.mark.parametrize("second", FILES)
def test_swapped_files_are_found(tmp_path: Path, first: str, second: str) -> None:
    (path,) = write(tmp_path, 1)
    if first == second:
        assert verify_checkpoint(path) is None
        return
    (path / first).rename(path / "between")
    (path / second).rename(path / first)
    (path / "between").rename(path / second)
    assert verify_checkpoint(path) is not None


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_step_is_found(tmp_path: Path, name: str) -> None:
    one, two = write(tmp_path, 1, 2)
    shutil.copy(one / name, two / name)
    assert verify_checkpoint(two) is not None
    assert newest_good(tmp_path) == one


def test_a_whole_checkpoint_under_the_name_of_another_step_is_found(tmp_path: Path) -> None:
    (one,) = write(tmp_path, 1)
    copy = tmp_path / "step-00000002"
    shutil.copytree(one, copy)
    assert verify_checkpoint(copy) == f"{MANIFEST} is of step 1"
    assert newest_good(tmp_path) == one


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"step": 1', b'"step": 2'),
        lambda text: text.replace(b"\n ", b"\n  ", 1),
        lambda text: text.replace(b'"format": 2,', b'"format": 2, "format": 2,'),
        lambda text: text.replace(b'"world_size": 2', b'"world_size": 2.0'),
        lambda text: text.replace(b'"loss": 1.5', b'"loss": 1.50'),
        lambda text: b"[]",
        lambda text: b"null",
        lambda text: b'{"format": 1, "step": 1, "files": {}}',
        lambda text: b"\xff" + text,
    ],
)
def test_a_manifest_that_was_edited_is_found(tmp_path: Path, change: object) -> None:
    path = write_checkpoint(tmp_path, checkpoint(1, loss=1.5), {"world_size": 2})
    before = (path / MANIFEST).read_bytes()
    after = change(before)  # type: ignore[operator]
    assert after != before
    (path / MANIFEST).write_bytes(after)
    problem = verify_checkpoint(path)
    assert problem is not None and problem.startswith(MANIFEST)


def test_a_file_that_the_disk_cannot_read_is_damaged(tmp_path: Path) -> None:
    """A folder in a file's place gives an error of the operating system when it is read, as a bad sector does."""
    one, two, three = write(tmp_path, 1, 2, 3)
    (two / WEIGHTS).unlink()
    (two / WEIGHTS).mkdir()
    (three / MANIFEST).unlink()
    (three / MANIFEST).mkdir()
    assert verify_checkpoint(three) == f"{MANIFEST} cannot be read (Is a directory)"
    assert newest_good(tmp_path) == one


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    write(tmp_path, 1)
    tmp_path.chmod(0)
    try:
        with pytest.raises(CheckpointError, match="cannot be read"):
            newest_good(tmp_path)
    finally:
        tmp_path.chmod(0o700)
