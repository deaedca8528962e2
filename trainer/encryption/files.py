"""How files of a store, a run or an export are opened: as they are, or encrypted, as the configuration's `security` has it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from trainer.config import SecurityConfig
from trainer.encryption.encrypted_file import HEADER_BYTES, DecryptingFile, EncryptingFile, is_encrypted, key_places
from trainer.encryption.keys import MasterKey, read_key
from trainer.errors import SecurityError
from trainer.files import put_in_place, temporary_name


@dataclass(frozen=True)
class Encryption:
    """`key` opens what is encrypted; with `is_on` what is written is encrypted, and what is not is refused.

    A `name` is everywhere that of a file within its store, checkpoints or export, with `/`: an encrypted file is bound to it.
    """

    key: MasterKey | None = None
    is_on: bool = False

    @classmethod
    def of(cls, security: SecurityConfig) -> Encryption:
        """Raises SecurityError where the key cannot be had."""
        return cls(read_key(security), security.encrypt)

    def opened(self, path: Path, name: str) -> BinaryIO:
        """A file to read, sought and told in its content. Raises OSError, and SecurityError where it may not be read so."""
        file = path.open("rb")
        try:
            header = file.read(HEADER_BYTES)
            file.seek(0)
            if self.decrypts(header, path):
                assert self.key is not None
                return cast(BinaryIO, DecryptingFile(file, self.key, name, str(path)))
        except BaseException:
            file.close()
            raise
        return file

    def decrypts(self, header: bytes, path: Path) -> bool:
        """Whether a file that begins so has to be decrypted. Raises SecurityError where there is no key for it, and where it
        ought to be encrypted and is not."""
        if is_encrypted(header):
            if self.key is None:
                raise SecurityError(f"{path}: is encrypted; give its key with security.key_file or security.key_environment")
            return True
        if self.is_on:
            raise SecurityError(
                f"{path}: is not encrypted, and with security.encrypt nothing else is read: somebody has put it there, or it "
                "was written before; make it again, or go on without security.encrypt"
            )
        return False

    def read_bytes(self, path: Path, name: str) -> bytes:
        with self.opened(path, name) as file:
            return file.read()

    @contextmanager
    def writing(self, file: BinaryIO, name: str) -> Iterator[EncryptingFile | HashingFile]:
        """What is written to the result is in `file` when the block ends, encrypted where that is asked for."""
        if not self.is_on:
            yield HashingFile(file)
            return
        assert self.key is not None
        encrypting = EncryptingFile(file, self.key, name)
        yield encrypting
        encrypting.finish()

    @contextmanager
    def new_file(self, path: Path, name: str) -> Iterator[EncryptingFile | HashingFile]:
        """As `writing`, to a new file of this machine, which is on disk when the block ends."""
        with path.open("wb") as file:
            with self.writing(file, name) as output:
                yield output
            file.flush()
            os.fsync(file.fileno())

    def write_file(self, path: Path, content: bytes, name: str) -> None:
        """A new file, which is on disk when this returns."""
        with self.new_file(path, name) as file:
            file.write(content)

    def write_atomically(self, path: Path, content: bytes, name: str) -> None:
        """Writes a file at once: others see the old content or the new, never a part."""
        temporary = temporary_name(path)
        self.write_file(temporary, content, name)
        put_in_place(temporary, path)

    def sha256(self, path: Path, name: str) -> str:
        """The hexadecimal sha256 of a file's content, the same whether it is encrypted or not."""
        with self.opened(path, name) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()

    def sha256_of_new(self, output: EncryptingFile | HashingFile, path: Path, name: str) -> str:
        """`sha256` of what was written to `path` by `output`; one that is encrypted is read for it."""
        return output.sha256 if isinstance(output, HashingFile) else self.sha256(path, name)


PLAIN = Encryption()


class HashingFile(io.RawIOBase):
    """Hands on what is written to another file, and counts and hashes it: `num_bytes` and `sha256` are of what there is so
    far, as those of an `EncryptingFile`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.num_bytes

    def write(self, content: Any) -> int:
        self._digest.update(content)
        self._file.write(content)
        num_bytes = memoryview(content).nbytes
        self.num_bytes += num_bytes
        return num_bytes


def is_encrypted_file(path: Path) -> bool:
    """Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return is_encrypted(file.read(HEADER_BYTES))


def stored_sha256(path: Path) -> tuple[str, str | None]:
    """Of a file as it lies there, without its key: the hash that was told when it was written, and what is wrong with its
    header (None: nothing). Of an encrypted one the hash is of its chunks, so rotation does not change it."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        if not is_encrypted(header):
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest(), None
        problem = None if any(key_places(header)) else "the header of its key is damaged"
        return hashlib.file_digest(file, "sha256").hexdigest(), problem
