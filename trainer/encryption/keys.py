"""The master key: made, read, and never shown. It encrypts nothing but the keys of files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trainer.config import SecurityConfig
from trainer.errors import SecurityError
from trainer.files import sync

KEY_BYTES = 32  # AES-256
IDENTIFIER_BYTES = 8
NONCE_BYTES = 12
TAG_BYTES = 16


class MasterKey:
    """Wraps the keys of files. Its bytes are in a cipher that does not show them: no log, dump or trace of it has them.

    `identifier` tells keys apart, and says nothing of what they are: a hash of the key, which is random.
    """

    def __init__(self, content: bytes) -> None:
        assert len(content) == KEY_BYTES
        self._cipher = AESGCM(content)
        self.identifier = hashlib.sha256(b"drumline master key" + content).digest()[:IDENTIFIER_BYTES]

    def __repr__(self) -> str:
        return f"MasterKey({self.identifier.hex()})"

    def wrap(self, nonce: bytes, file_key: bytes, context: bytes) -> bytes:
        """The key of a file, encrypted, with its tag; `context` is bound to it. A nonce serves once."""
        return self._cipher.encrypt(nonce, file_key, context)

    def unwrap(self, nonce: bytes, wrapped: bytes, context: bytes) -> bytes | None:
        """The key of a file; None where it was not wrapped so by this key."""
        try:
            return self._cipher.decrypt(nonce, wrapped, context)
        except InvalidTag:
            return None


def create_key(path: Path) -> MasterKey:
    """Writes a new key, 32 random bytes in base64, to a new file that its owner alone may read.

    Raises SecurityError where there is a file already, or none can be written.
    """
    content = os.urandom(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(content) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync(path.absolute().parent)
    except FileExistsError:
        raise SecurityError(f"{path}: is there already; what was encrypted with it would be lost: take another name") from None
    except OSError as error:
        raise SecurityError(f"{path}: cannot be written ({error.strerror}); take another place") from None
    return MasterKey(content)


def read_key(security: SecurityConfig) -> MasterKey | None:
    """The key that a configuration names; None where it names none. Raises SecurityError where it cannot be had."""
    return key_from(security.key_file, security.key_environment, "security.key_file", "security.key_environment")


def key_from(file: str | None, variable: str | None, file_option: str, variable_option: str) -> MasterKey | None:
    """The key in a file, or in an environment variable; None where neither is named. The options are for complaints."""
    if file is not None:
        try:
            content = Path(file).read_bytes()
        except OSError as error:
            raise SecurityError(
                f"{file_option}: {file} cannot be read ({error.strerror}); expected the key: put it there, or make one with: "
                "drumline keys create FILE"
            ) from None
        return _decode(content, f"{file_option}: {file}")
    if variable is not None:
        value = os.environ.get(variable)
        if not value:
            raise SecurityError(
                f"{variable_option}: the variable {variable} is not set; expected the key, as drumline keys create writes it"
            )
        return _decode(value.encode(), f"{variable_option}: {variable}")
    return None


def _decode(content: bytes, where: str) -> MasterKey:
    """Of what was got nothing is told: it may be all of a key but a letter."""
    try:
        key = base64.b64decode(content.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise SecurityError(f"{where} holds no key; expected {KEY_BYTES} bytes in base64, as drumline keys create writes them")
    return MasterKey(key)
