"""Texts as runs of words: what tells that two texts share a part, or are nearly the same.

Words are runs of letters, digits and underscores without regard to case; what stands between them does not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word's hash is lost


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def word_hashes(words: Sequence[str]) -> Hashes:
    """Equal on all machines."""
    return np.fromiter(map(_word_hash, words), np.uint64, len(words))


def run_hashes(words: Hashes, length: int) -> Hashes:
    """The hash of each run of so many words: a polynomial in `_FACTOR`, modulo 2**64."""
    count = len(words) - length + 1
    result = np.zeros(count, np.uint64)
    for place in range(length):
        result = result * _FACTOR + words[place : place + count]
    return result


@lru_cache(maxsize=2**17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
