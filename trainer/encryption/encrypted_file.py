"""The format of an encrypted file: two places for the wrapped key of the file, and its content in chunks.

    place     128 bytes, twice: which master key has wrapped the key of this file, and the wrapped key; or zeros
    chunk     65,536 bytes of content, encrypted, and a tag of 16 bytes; the last chunk may have fewer bytes

Each file has a random key of its own, so a chunk's nonce is its number and whether it is the last: a chunk that was changed,
moved, repeated or left out is refused, and so is a file that was cut. The file's name within its store, checkpoint or export is
bound to its key: no file can stand in for another. Each chunk can be read by itself.

To rotate, the key is wrapped again into the place that is free, and then the other is made free: whenever that is interrupted,
one of them is whole. Both are apart from the content, whose hash (`sha256` here) is of all that follows them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trainer.encryption.keys import IDENTIFIER_BYTES, KEY_BYTES, NONCE_BYTES, TAG_BYTES, MasterKey
from trainer.errors import SecurityError

CHUNK_BYTES = 2**16
MAGIC = b"DRUMENC\x01"  # the last byte is the format's number
PLACE_BYTES = 128
HEADER_BYTES = 2 * PLACE_BYTES
_CHECKSUM_BYTES = 8
_WRAPPED_BYTES = KEY_BYTES + TAG_BYTES
_FREE = bytes(PLACE_BYTES)
# Of chunks that were read last: a sample's tokens and where they begin are in two, those of its columns in a few.
_NUM_KEPT_CHUNKS = 4


@dataclass(frozen=True)
class KeyPlace:
    """A wrapped key. `generation` counts how often it was wrapped; `name` is a hash of the file's name."""

    generation: int
    key_identifier: bytes
    name: bytes
    nonce: bytes
    wrapped: bytes

    @classmethod
    def make(cls, key: MasterKey, file_key: bytes, name: bytes, generation: int) -> KeyPlace:
        nonce = os.urandom(NONCE_BYTES)
        context = _context(generation, key.identifier, name)
        return cls(generation, key.identifier, name, nonce, key.wrap(nonce, file_key, context))

    @classmethod
    def read(cls, content: bytes) -> KeyPlace | None:
        """None where it is free, or is not what was written."""
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if not body.startswith(MAGIC) or _checksum(body) != checksum:
            return None
        rest = io.BytesIO(body[len(MAGIC) :])
        generation = int.from_bytes(rest.read(8), "little")
        return cls(generation, *map(rest.read, (IDENTIFIER_BYTES, 32, NONCE_BYTES, _WRAPPED_BYTES)))

    def content(self) -> bytes:
        body = _context(self.generation, self.key_identifier, self.name) + self.nonce + self.wrapped
        body = body.ljust(PLACE_BYTES - _CHECKSUM_BYTES, b"\0")
        return body + _checksum(body)

    def file_key(self, key: MasterKey) -> bytes | None:
        return key.unwrap(self.nonce, self.wrapped, _context(self.generation, self.key_identifier, self.name))


def name_hash(name: str) -> bytes:
    """By what a file's name is bound to its key; `name` is relative to its store, checkpoints or export, with `/`."""
    return hashlib.sha256(name.encode()).digest()


def is_encrypted(header: bytes) -> bool:
    """Whether a file that begins so is an encrypted one, however damaged."""
    return header.startswith(MAGIC) or header[PLACE_BYTES:].startswith(MAGIC)


def key_places(header: bytes) -> list[KeyPlace | None]:
    return [KeyPlace.read(header[begin : begin + PLACE_BYTES]) for begin in (0, PLACE_BYTES)]


class EncryptedContent:
    """What an encrypted file holds, decrypted a chunk at a time. Any number of threads may read.

    `read` gives the bytes from one offset of the file to another, `where` is for complaints. Raises SecurityError for another
    key, and for a file or chunk that is not what was written.
    """

    def __init__(self, read: Callable[[int, int], Any], file_bytes: int, key: MasterKey, name: str | bytes, where: str) -> None:
        self._read, self._where = read, where
        self._cipher = AESGCM(self._file_key(bytes(read(0, HEADER_BYTES)), key, name))
        body = file_bytes - HEADER_BYTES
        self._num_chunks = max(1, -(-body // (CHUNK_BYTES + TAG_BYTES)))
        self.num_bytes = body - self._num_chunks * TAG_BYTES
        self.chunk = functools.lru_cache(maxsize=_NUM_KEPT_CHUNKS)(self._chunk)
        self.chunk(self._num_chunks - 1)  # a file that was cut has none that says it is the last

    def read(self, begin: int, end: int) -> bytes:
        """The content from one offset to another, which must be within it."""
        assert 0 <= begin <= end <= self.num_bytes
        first, last = begin // CHUNK_BYTES, max(begin, end - 1) // CHUNK_BYTES
        if first == last:
            return self.chunk(first)[begin - first * CHUNK_BYTES : end - first * CHUNK_BYTES] if begin < end else b""
        content = b"".join(self.chunk(index) for index in range(first, last + 1))
        return content[begin - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def _chunk(self, index: int) -> bytes:
        begin = HEADER_BYTES + index * (CHUNK_BYTES + TAG_BYTES)
        end = min(begin + CHUNK_BYTES, HEADER_BYTES + index * TAG_BYTES + self.num_bytes) + TAG_BYTES
        try:
            return self._cipher.decrypt(_nonce(index, index == self._num_chunks - 1), self._read(begin, end), None)
        except (InvalidTag, ValueError):
            raise SecurityError(
                f"{self._where}: chunk {index} of {self._num_chunks} is not what was written: the file was changed or cut; "
                "restore it from a backup, or make it again"
            ) from None

    def _file_key(self, header: bytes, key: MasterKey, name: str | bytes) -> bytes:
        places = [place for place in key_places(header) if place is not None]
        own = _newest_place(header, key)
        if not places:
            raise SecurityError(f"{self._where}: the header of its key is damaged; restore it from a backup, or make it again")
        if own is None:
            raise SecurityError(
                f"{self._where}: is encrypted with the key {places[0].key_identifier.hex()}, and the one that was given is "
                f"{key.identifier.hex()}; give that key"
            )
        _, newest = own
        if newest.name != (name_hash(name) if isinstance(name, str) else name):
            raise SecurityError(f"{self._where}: is another file, that was put in its place; restore it from a backup")
        file_key = newest.file_key(key)
        if file_key is None:
            raise SecurityError(f"{self._where}: the header of its key is not what was written; restore it from a backup")
        return file_key


class DecryptingFile(io.RawIOBase):
    """An encrypted file, opened to read its content. Closing it closes the file."""

    def __init__(self, file: BinaryIO, key: MasterKey, name: str | bytes, where: str) -> None:
        self._file, self._position = file, 0
        self._content = EncryptedContent(self._from_file, file.seek(0, os.SEEK_END), key, name, where)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._content.num_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, but at the end of the file."""
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._content.num_bytes)
        filled = 0
        while self._position < end:
            index, within = divmod(self._position, CHUNK_BYTES)
            piece = self._content.chunk(index)[within : within + end - self._position]
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def close(self) -> None:
        self._file.close()
        super().close()

    def _from_file(self, begin: int, end: int) -> bytes:
        self._file.seek(begin)
        return self._file.read(end - begin)


class EncryptingFile(io.RawIOBase):
    """Encrypts what is written to it into another file; `finish` writes the last chunk.

    num_bytes: of the file so far, `sha256`: of its chunks so far
    """

    def __init__(self, file: BinaryIO, key: MasterKey, name: str) -> None:
        file_key = os.urandom(KEY_BYTES)
        self._file, self._cipher = file, AESGCM(file_key)
        self._held, self._num_chunks, self._position = bytearray(), 0, 0
        self._digest = hashlib.sha256()
        file.write(KeyPlace.make(key, file_key, name_hash(name), generation=1).content() + _FREE)
        self.num_bytes = HEADER_BYTES

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        """All of it. A whole chunk is held back until it is known not to be the last."""
        view = memoryview(content).cast("B")
        begin = 0
        while begin < len(view):
            if len(self._held) == CHUNK_BYTES:
                self._write_chunk(is_last=False)
            taken = view[begin : begin + CHUNK_BYTES - len(self._held)]
            self._held += taken
            begin += len(taken)
        self._position += len(view)
        return len(view)

    def tell(self) -> int:
        """How much content there is."""
        return self._position

    def finish(self) -> None:
        self._write_chunk(is_last=True)

    def _write_chunk(self, *, is_last: bool) -> None:
        chunk = self._cipher.encrypt(_nonce(self._num_chunks, is_last), self._held, None)
        self._held.clear()
        self._digest.update(chunk)
        self._file.write(chunk)
        self._num_chunks += 1
        self.num_bytes += len(chunk)


def rewrapped(header: bytes, key: MasterKey, new_key: MasterKey, where: str) -> tuple[int, bytes] | None:
    """What to write where in a file's header so that `new_key` opens it, too; None where it does already.

    Raises SecurityError where `key` does not open it.
    """
    if _newest_place(header, new_key) is not None:
        return None
    own = _newest_place(header, key)
    file_key = None if own is None else own[1].file_key(key)
    if own is None or file_key is None:
        raise SecurityError(
            f"{where}: the key {key.identifier.hex()} does not open it; give the key that it was encrypted with"
        )
    number, place = own
    again = KeyPlace.make(new_key, file_key, place.name, place.generation + 1)
    return (1 - number) * PLACE_BYTES, again.content()


def superseded(header: bytes, new_key: MasterKey) -> list[int]:
    """The offsets of places that are not the new key's, to be made free (with zeros) once that is on disk."""
    offsets = []
    for number, place in enumerate(key_places(header)):
        is_free = header[number * PLACE_BYTES :][:PLACE_BYTES] == _FREE
        if not is_free and (place is None or place.key_identifier != new_key.identifier):
            offsets.append(number * PLACE_BYTES)
    return offsets


def _newest_place(header: bytes, key: MasterKey) -> tuple[int, KeyPlace] | None:
    """The place that this key wrapped last, with its number; None where it wrapped none."""
    own = [
        (number, place) for number, place in enumerate(key_places(header)) if place and place.key_identifier == key.identifier
    ]
    return max(own, key=lambda each: each[1].generation, default=None)


def _context(generation: int, key_identifier: bytes, name: bytes) -> bytes:
    return MAGIC + generation.to_bytes(8, "little") + key_identifier + name


def _nonce(index: int, is_last: bool) -> bytes:
    return index.to_bytes(NONCE_BYTES - 1, "big") + bytes([is_last])


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
