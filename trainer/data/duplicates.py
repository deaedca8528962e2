"""Finds training texts that are there before already, to be left out: the same text, or one that is nearly the same.

Nearly the same is what shares most of its runs of five words, by MinHash (Broder 1997, "On the resemblance and containment of
documents"): the share of equal minima estimates the share of runs that two texts have in common. Texts are compared with those
that share all four minima of one of 32 bands (Leskovec et al., "Mining of Massive Datasets", section 3.4): two that share
eight tenths of their runs miss each other once in twenty million times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.shingles import run_hashes, word_hashes, words_of
from trainer.data.sources import Span

EXAMPLES = 3
_RUN_WORDS = 5
_NUM_MINIMA, _BAND_MINIMA = 128, 4
_generator = np.random.Philox(key=np.array([5, _NUM_MINIMA], np.uint64))
# Of the functions x -> (a x + b) mod 2**64, whose upper half is what the minimum is of; a is odd.
_FACTORS = _generator.random_raw(_NUM_MINIMA) | np.uint64(1)
_SUMMANDS = _generator.random_raw(_NUM_MINIMA)
_CHUNK_RUNS = 4096  # at once, so that the processor's caches hold them

Minima = npt.NDArray[np.uint32]
SpanKey = tuple[
    str, str, int
]  # the part that a range of an input file is read for, the file's path, and where the range begins


@dataclass(frozen=True)
class Duplicates:
    """Which texts of each range are there before already, by their numbers from 0; `source` is a hash of all that this follows
    from. It is kept in the store, since finding it takes reading all of the training data."""

    source: str
    numbers: Mapping[SpanKey, tuple[int, ...]]
    examples: tuple[str, ...]

    @property
    def num_texts(self) -> int:
        return sum(map(len, self.numbers.values()))

    @classmethod
    def read(cls, path: Path) -> Duplicates | None:
        """What `to_json` wrote; None where there is no such thing."""
        try:
            content = json.loads(path.read_bytes())
            numbers = {(part, file, begin): tuple(each) for part, file, begin, each in content["dropped"]}
            return cls(content["source"], numbers, tuple(content["examples"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def to_json(self) -> dict[str, Any]:
        dropped = [[*key, numbers] for key, numbers in self.numbers.items()]
        return {"source": self.source, "num_texts": self.num_texts, "examples": self.examples, "dropped": dropped}


@dataclass(frozen=True)
class Place:
    """The `number`-th text, from 0, of a range of an input file."""

    key: SpanKey
    number: int


@dataclass(frozen=True)
class Signatures:
    """What tells the texts of a part apart, in order: of equal ones a digest, of nearly equal ones their minima [texts,
    minima]; `counts` says how many each range has that they are from."""

    digests: tuple[bytes, ...]
    minima: Minima
    counts: tuple[tuple[SpanKey, int], ...]

    @property
    def places(self) -> Iterator[Place]:
        return (Place(key, number) for key, count in self.counts for number in range(count))


def signatures_of(part: str, texts: Iterable[tuple[Span, Iterable[Sequence[str]]]], *, is_near: bool) -> Signatures:
    """Of the texts of each record of a part, or of single documents, by span."""
    digests: list[bytes] = []
    minima: list[Minima] = []
    counts = []
    for span, records in texts:
        before = len(digests) + len(minima)
        for record in records:
            if is_near:
                minima.append(minima_of(" ".join(record)))
            else:
                digests.append(hashlib.blake2b("\0".join(record).encode(), digest_size=16).digest())
        counts.append(((part, span.path, span.begin), len(digests) + len(minima) - before))
    return Signatures(tuple(digests), np.array(minima, np.uint32).reshape(-1, _NUM_MINIMA), tuple(counts))


def minima_of(text: str) -> Minima:
    """[minima]; all ones where the text has no word."""
    words = word_hashes(words_of(text))
    runs = run_hashes(words, min(_RUN_WORDS, len(words))) if len(words) else np.zeros(0, np.uint64)
    found = np.full(_NUM_MINIMA, np.iinfo(np.uint32).max, np.uint32)
    for begin in range(0, len(runs), _CHUNK_RUNS):
        hashed = (runs[begin : begin + _CHUNK_RUNS, None] * _FACTORS + _SUMMANDS) >> np.uint64(32)
        found = np.minimum(found, hashed.min(0).astype(np.uint32))
    return found


def find_equal(parts: Iterable[Signatures]) -> Iterator[tuple[Place, Place]]:
    """Each text that was there before, and the first that it equals."""
    first: dict[bytes, Place] = {}
    for part in parts:
        for digest, place in zip(part.digests, part.places, strict=True):
            if (original := first.setdefault(digest, place)) is not place:
                yield place, original


def find_similar(parts: Iterable[Signatures], similarity: float) -> Iterator[tuple[Place, Place]]:
    """Each text that shares so much with one before it that is kept, and that one."""
    kept: list[Minima] = []
    kept_places: list[Place] = []
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for part in parts:
        for minima, place in zip(part.minima, part.places, strict=True):
            if minima.min() == np.iinfo(np.uint32).max:  # no word
                continue
            keys = [(band, minima[band : band + _BAND_MINIMA].tobytes()) for band in range(0, _NUM_MINIMA, _BAND_MINIMA)]
            candidates = sorted({number for key in keys for number in buckets.get(key, ())})
            shares = [(np.count_nonzero(kept[number] == minima) / _NUM_MINIMA, number) for number in candidates]
            best = max(shares, default=(0.0, -1), key=lambda each: (each[0], -each[1]))
            if best[0] >= similarity:
                yield place, kept_places[best[1]]
                continue
            for key in keys:
                buckets.setdefault(key, []).append(len(kept))
            kept.append(minima)
            kept_places.append(place)


def list_duplicates(source: str, found: Iterable[tuple[Place, Place]]) -> Duplicates:
    dropped: dict[SpanKey, list[int]] = {}
    examples: list[str] = []
    for place, original in found:
        dropped.setdefault(place.key, []).append(place.number)
        if len(examples) < EXAMPLES:
            examples.append(f"{_name(place)} after {_name(original)}")
    numbers = {key: tuple(sorted(each)) for key, each in sorted(dropped.items())}
    return Duplicates(source, numbers, tuple(examples))


def _name(place: Place) -> str:
    _, path, begin = place.key
    return f"text {place.number} of {path}" + (f" from {begin:,}" if begin else "")
