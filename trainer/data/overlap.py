"""Finds training texts that share a run of words with evaluation texts, to be left out: otherwise an evaluation would in part
measure what is known by heart (decontamination by n-grams; Brown et al. 2020, arXiv:2005.14165, appendix C, with 13 words).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.data.shingles import Hashes, run_hashes, word_hashes, words_of
from trainer.data.sources import Span

EXAMPLES = 3
_LONGEST_EXAMPLE = 13  # words


@dataclass(frozen=True)
class OverlapRule:
    """Texts that have `num_words` words in a row in common with one of the `evaluated` files are left out. An evaluation text
    that is shorter is looked for as a whole, if it has `least_words`. `sha256s` are those of the files."""

    num_words: int
    least_words: int
    evaluated: tuple[Span, ...]
    sha256s: tuple[str, ...]


@dataclass
class OverlapReport:
    """How many texts of a part were left out, and the words by which some of them were found."""

    num_texts: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, words: str) -> None:
        self.num_texts += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(words)

    def merge(self, other: OverlapReport) -> None:
        self.num_texts += other.num_texts
        self.examples = [*self.examples, *other.examples][:EXAMPLES]


@dataclass(frozen=True)
class OverlapIndex:
    """The runs of words of all evaluation texts: for each length the hashes of the runs, sorted."""

    runs: Mapping[int, Hashes]

    @classmethod
    def of(cls, texts: Iterable[str], rule: OverlapRule) -> OverlapIndex:
        found: dict[int, list[Hashes]] = {}
        for text in texts:
            hashes = word_hashes(words_of(text))
            length = min(rule.num_words, len(hashes))
            if length >= rule.least_words:
                found.setdefault(length, []).append(np.unique(run_hashes(hashes, length)))
        return cls({length: np.unique(np.concatenate(arrays)) for length, arrays in sorted(found.items())})

    def find(self, text: str) -> str | None:
        """The first run of words of a text, of the shortest length, that an evaluation text has too."""
        words = words_of(text)
        hashes = word_hashes(words)
        for length, known in self.runs.items():
            if length <= len(hashes):
                runs = run_hashes(hashes, length)
                places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
                hits = np.flatnonzero(known[places] == runs)
                if len(hits):
                    return " ".join(words[hits[0] : hits[0] + min(length, _LONGEST_EXAMPLE)])
        return None


def overlapping(texts: Sequence[str], index: OverlapIndex, report: OverlapReport) -> bool:
    """Whether any of the texts of one record is to be left out; the `report` hears of it."""
    found = next((words for words in map(index.find, texts) if words is not None), None)
    if found is not None:
        report.add(found)
    return found is not None


def rule_of(content: Mapping[str, Any], spans: Sequence[Span]) -> OverlapRule:
    """A rule as JSON has it, with its spans."""
    return OverlapRule(content["num_words"], content["least_words"], tuple(spans), tuple(content["sha256s"]))
