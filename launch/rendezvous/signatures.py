"""Signs requests and answers with the job's secret, which itself is never sent (HMAC-SHA256, RFC 2104).

A request counts once: it carries the number of its sender and a count, as in IPsec (RFC 4303, section 3.4.3), and the number of
the server's session, so that none recorded before the server started again is taken either. An answer is signed with the
request that it belongs to.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass

# More requests than one sender has under way at once.
_WINDOW = 4096
_MOST_DIGITS = 15


@dataclass(frozen=True)
class Nonce:
    """What makes a request different from all others: who sends it, and how many it has sent before."""

    sender: str
    count: int

    def __str__(self) -> str:
        return f"{self.sender}-{self.count}"


class Nonces:
    """A sender's nonces, each another, whichever thread asks."""

    def __init__(self) -> None:
        self._sender = secrets.token_hex(16)
        self._count = 0
        self._lock = threading.Lock()

    def next(self) -> Nonce:
        with self._lock:
            self._count += 1
            return Nonce(self._sender, self._count)


class SeenNonces:
    """What the server has seen of each sender: the highest count, and which of those just below it."""

    def __init__(self) -> None:
        self._seen: dict[str, set[int]] = {}
        self._highest: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, nonce: Nonce) -> bool:
        """Whether it is a new one, which it is only once. To be asked only of what is signed: others would fill the memory."""
        with self._lock:
            seen, highest = self._seen.setdefault(nonce.sender, set()), self._highest.get(nonce.sender, 0)
            if nonce.count <= highest - _WINDOW or nonce.count in seen:
                return False
            seen.add(nonce.count)
            self._highest[nonce.sender] = max(highest, nonce.count)
            if len(seen) > 2 * _WINDOW:
                oldest = self._highest[nonce.sender] - _WINDOW
                self._seen[nonce.sender] = {count for count in seen if count > oldest}
            return True


def parse_nonce(text: str) -> Nonce | None:
    sender, _, count = text.partition("-")
    well_formed = (
        sender.isalnum() and len(sender) <= 64 and count.isascii() and count.isdecimal() and len(count) <= _MOST_DIGITS
    )
    return Nonce(sender, int(count)) if well_formed else None


def sign_request(secret: bytes, session: str, job: str, method: str, path: str, nonce: str, body: bytes) -> str:
    return _sign(secret, "request", session, job, method, path, nonce, hashlib.sha256(body).hexdigest())


def sign_answer(secret: bytes, session: str, job: str, nonce: str, status: int, body: bytes) -> str:
    return _sign(secret, "answer", session, job, nonce, str(status), hashlib.sha256(body).hexdigest())


def is_same(signature: str, expected: str) -> bool:
    """Compares in a time that does not tell where they differ."""
    return hmac.compare_digest(signature.encode(errors="replace"), expected.encode())


def _sign(secret: bytes, *parts: str) -> str:
    # Each with its length: no two lists of parts have the same bytes.
    message = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return hmac.new(secret, message, hashlib.sha256).hexdigest()
