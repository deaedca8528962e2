"""What `drumline keys` does with all encrypted files of a folder, or of a URL: gives them another key, or decrypts them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from trainer.encryption.encrypted_file import (
    HEADER_BYTES,
    PLACE_BYTES,
    DecryptingFile,
    is_encrypted,
    key_places,
    name_hash,
    rewrapped,
    superseded,
)
from trainer.encryption.keys import MasterKey
from trainer.errors import SecurityError
from trainer.location import is_local, listing, os_errors, written_file
from trainer.pretrained.new_folder import new_folder


def rotate(folder: Path, key: MasterKey, new_key: MasterKey) -> tuple[int, int]:
    """Wraps the keys of all encrypted files with `new_key` instead of `key`; how many files were, and how many had been before.

    Of files the header alone is written; interrupted at any moment, it can be done again. Behind a URL, where no part of a file
    can be written, the file is copied with its content as it is. Raises SecurityError where a file does not open with `key`,
    and where there is none that is encrypted.
    """
    num_rotated = num_before = 0
    for path in _files(folder):
        if _rotate_file(path, key, new_key):
            num_rotated += 1
        else:
            num_before += 1
    if not num_rotated + num_before:
        raise SecurityError(f"{folder}: has no encrypted file; check the path")
    return num_rotated, num_before


def decrypt(folder: Path, output: Path, key: MasterKey) -> int:
    """Copies a folder, or a URL's, to a new one, decrypted; how many files of it were encrypted.

    Raises SecurityError for a file that does not open with `key`, or is not what was written; nothing is there then.
    """
    num_decrypted = 0
    with new_folder(output) as unfinished:
        for path, name in _walk(folder):
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with os_errors(), path.open("rb") as file, target.open("wb") as copy:
                header = file.read(HEADER_BYTES)
                file.seek(0)
                if is_encrypted(header):
                    shutil.copyfileobj(DecryptingFile(file, key, _bound_name(header, name, path), str(path)), copy, 2**20)
                    num_decrypted += 1
                else:
                    shutil.copyfileobj(file, copy, 2**20)
        if not num_decrypted:
            raise SecurityError(f"{folder}: has no encrypted file; check the path")
    return num_decrypted


def _rotate_file(path: Path, key: MasterKey, new_key: MasterKey) -> bool:
    """Whether it had another key before."""
    with os_errors(), path.open("rb") as file:
        header = bytearray(file.read(HEADER_BYTES))
    change = rewrapped(bytes(header), key, new_key, str(path))
    if change is not None:
        offset, content = change
        header[offset : offset + PLACE_BYTES] = content
    old = superseded(bytes(header), new_key)
    for offset in old:
        header[offset : offset + PLACE_BYTES] = bytes(PLACE_BYTES)
    if is_local(path):
        # The new place first, and to disk: a power cut in between leaves a file that both keys open.
        for number, content in ([change] if change is not None else []) + [(each, bytes(PLACE_BYTES)) for each in old]:
            _write_at(path, number, content)
    elif change is not None or old:
        _copy_with_header(path, bytes(header))
    return change is not None


def _write_at(path: Path, offset: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_with_header(path: Path, header: bytes) -> None:
    """The upload takes the file's place when it is complete."""
    with os_errors(), path.open("rb") as file, written_file(path) as copy:
        file.seek(HEADER_BYTES)
        copy.write(header)
        shutil.copyfileobj(file, copy, 2**24)


def _bound_name(header: bytes, name: str, path: Path) -> bytes:
    """The hash of the name that a file is bound to, which is its name from one of the folders above it on."""
    parts = name.split("/")
    candidates = {name_hash("/".join(parts[begin:])) for begin in range(len(parts))}
    bound = {place.name for place in key_places(header) if place is not None}
    if bound and not bound & candidates:
        raise SecurityError(f"{path}: is another file, that was put in its place; restore it from a backup")
    return next(iter(bound & candidates), name_hash(name))


def _files(folder: Path) -> Iterator[Path]:
    """Those that are encrypted."""
    for path, _ in _walk(folder):
        with os_errors(), path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        if is_encrypted(header):
            yield path


def _walk(folder: Path, below: str = "") -> Iterator[tuple[Path, str]]:
    """All files, each with its name in the folder. Raises SecurityError where there are none."""
    entries = listing(folder)
    if not entries and not below:
        raise SecurityError(f"{folder}: no such folder, or nothing in it; check the path")
    for name, size in sorted(entries.items()):
        if size is None:
            yield from _walk(folder / name, f"{below}{name}/")
        else:
            yield folder / name, f"{below}{name}"
