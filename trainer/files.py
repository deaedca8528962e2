"""Files that are there whole or not at all, also after a power cut, and their hashes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any


def json_bytes(content: Any) -> bytes:
    """JSON for people to read, with a line end."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def csv_bytes(rows: Iterable[Sequence[Any]]) -> bytes:
    """A table, its header first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def is_inside(name: str) -> bool:
    """Whether a relative path that someone else wrote down stays within the folder that it is relative to."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file at once: others see the old content or the new, never a part."""
    temporary = temporary_name(path)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(temporary, path)


def temporary_name(path: Path) -> Path:
    """Where to write what `put_in_place` moves to `path`. Host and process keep two writers apart: in containers all
    processes have the same few numbers."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Renames what is on disk already to its final name, and sees the new name to disk."""
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's bytes are on disk, or a folder's names: without it a rename may not outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, and sees their names to disk; one that is there already is left as it is."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)
