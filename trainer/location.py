"""Where checkpoints lie, a local folder or a URL, and what has to be done differently for the two.

A local folder is a `pathlib.Path`. A URL of any file system that fsspec knows is a `upath.UPath`, which has the same
methods, so that both go by the type `Path` here. Behind a URL there is no rename that others see at once, and none of its
listings may come from a cache: another process may have written since.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from trainer.errors import CheckpointError
from trainer.files import make_folder

logger = logging.getLogger(__name__)

# What packages behind URLs raise when a server is gone, does not answer or refuses, as far as it is no OSError: an S3
# endpoint that is switched off gives botocore's EndpointConnectionError, a connection that breaks in a download aiohttp's
# ClientPayloadError. They are looked up among the modules that are loaded, so that none is imported for a local folder.
_FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
)


def open_location(text: str) -> Path:
    """A path, or the `UPath` of a URL (`s3://bucket/folder`). A `file://` URL is a path.

    Raises CheckpointError where no file system goes by the URL's name, where the package for it is not installed, or where
    it cannot be opened at all.
    """
    if "://" not in text:
        return Path(text)
    from upath import UPath

    protocol = text.partition("://")[0]
    try:
        with os_errors():
            location: Any = UPath(text)
            if not location.protocol:  # "://x" is a path to it
                raise ValueError("it names no file system")
            _ = location.fs  # imports the package
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint.directory: got {text!r}, expected a path, or a URL of a file system that fsspec knows ({error})"
        ) from None
    except ImportError as error:
        package = "'drumline[s3]'" if protocol in ("s3", "s3a") else "what it names"
        raise CheckpointError(
            f"checkpoint.directory: {text}: the package for {protocol}:// is not installed ({error}); pip install {package}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"checkpoint.directory: {text}: cannot be opened ({error})") from error
    if protocol in ("file", "local"):
        return Path(location.path)
    return cast(Path, location)


def is_local(location: Path) -> bool:
    """Whether it is a folder of this machine (or mounted on it), with rename, fsync and flock."""
    return isinstance(location, Path)


@contextmanager
def os_errors() -> Iterator[None]:
    """Whatever a file system raises within is an OSError, also what the package behind a URL has not made one."""
    try:
        yield
    except Exception as error:
        if isinstance(error, _foreign_errors()):
            raise OSError(f"{type(error).__name__}: {error}") from error
        raise


def listing(folder: Path) -> dict[str, int | None]:
    """What lies in a folder, by name: the size of a file in bytes, None for a folder. Empty where there is no such folder.

    Raises OSError where it cannot be told.
    """
    try:
        if is_local(folder):
            with os.scandir(folder) as local:
                return {entry.name: None if entry.is_dir() else entry.stat().st_size for entry in local}
        remote: Any = folder
        with os_errors():
            remote.fs.invalidate_cache(remote.path)
            found = remote.fs.ls(remote.path, detail=True)
    except FileNotFoundError:
        return {}
    itself = remote.path.strip("/")
    # Some stores have an empty object that stands for the folder, and list it within itself.
    entries = {entry["name"].strip("/"): entry for entry in found}
    return {
        path.rpartition("/")[2]: None if entry["type"] == "directory" else entry["size"]
        for path, entry in entries.items()
        if path != itself
    }


def make_location(folder: Path) -> None:
    """Makes a folder and those above it; where it is there already, nothing happens. Raises OSError where it cannot.

    The first name behind a URL, a bucket say, is not made: a name mistyped would be a new bucket.
    """
    if is_local(folder):
        make_folder(folder)
        return
    remote: Any = folder
    names = remote.path.strip("/").split("/")
    root = "/" if remote.path.startswith("/") else ""
    with os_errors():
        for depth in range(2, len(names) + 1):
            path = root + "/".join(names[:depth])
            if not remote.fs.exists(path):
                remote.fs.mkdir(path, create_parents=False)


@contextmanager
def written_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, which is on disk, or with the server, when the block ends. Raises OSError where it cannot be written.

    Where the block fails, nothing of it is sent on: a file object of fsspec would upload what it has when it is closed.
    """
    if is_local(path):
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        return
    with os_errors():
        upload: Any = path.open("wb")
        try:
            yield upload
            upload.close()
        except BaseException:
            _abandon(upload, path)
            raise


def remove_folder(folder: Path, first: str) -> None:
    """Deletes a folder and the files in it, behind a URL the file `first` before the others. Raises OSError where it cannot."""
    if is_local(folder):
        shutil.rmtree(folder)
        return
    remote: Any = folder
    with os_errors():
        if first in listing(folder):
            (remote / first).unlink()
        remote.fs.rm(remote.path, recursive=True)
        remote.fs.invalidate_cache(remote.path)


def _abandon(upload: Any, path: Path) -> None:
    from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped]

    try:
        with os_errors():
            if isinstance(upload, AbstractBufferedFile):
                upload.discard()
            else:
                upload.close()
    except OSError as error:
        logger.warning("%s: its unfinished upload could not be taken back (%s)", path, error)
    finally:
        if isinstance(upload, AbstractBufferedFile):
            upload.closed = True  # else closing it, as Python does when it deletes it, would upload the rest


def _foreign_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], name) for module, name in _FOREIGN_ERRORS if module in sys.modules]
    return tuple(getattr(module, name) for module, name in loaded)
