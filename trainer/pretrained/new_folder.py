"""A folder that appears at once: others see all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UserError
from trainer.files import make_folder, put_in_place, sync, temporary_name


def refuse_existing(path: Path) -> None:
    """Raises UserError where there is something already that a folder would take the place of."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"--output: {path}: is there already, and is no folder; take another")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"--output: {path}: is there already, and not empty; take another, or delete it")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets its name `path` when that is done, and is deleted when it fails.

    Raises UserError where `path` is taken, or cannot be written.
    """
    refuse_existing(path)
    unfinished = temporary_name(path.absolute())
    try:
        make_folder(unfinished.parent)
        unfinished.mkdir()
        try:
            yield unfinished
            for each in sorted(unfinished.rglob("*"), reverse=True):
                sync(each)
            sync(unfinished)
            put_in_place(unfinished, path.absolute())
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"--output: {path}: cannot be written: {error.strerror or error}; make room, or take another"
        ) from error
