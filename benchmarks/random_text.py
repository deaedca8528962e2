"""English-like text for benchmarks, the same at every call: nothing is fetched from elsewhere."""

from __future__ import annotations

import pydoc_data.topics
from collections import Counter
from pathlib import Path

import numpy as np

NUM_WORDS = 200_000


def write_documents(path: Path, num_bytes: int, seed: int = 1) -> None:
    """Documents of 20 to 180 words, one a line.

    Words are drawn by Zipf's law with Mandelbrot's shift of 2.7, the frequent ones those of the Python manual, the others
    made of its pairs of letters: as in real text, some words come always and new ones never end. Text repeated instead
    would come out of a tokenizer's cache.
    """
    rng = np.random.default_rng(seed)
    words = np.array(_words(rng), np.str_)
    ranks = np.arange(len(words))
    shares = np.cumsum(1.0 / (ranks + 2.7) ** 1.05)
    with path.open("w") as file:
        num_left = num_bytes
        while num_left > 0:
            lengths = rng.integers(20, 181, 200)
            drawn = words[np.searchsorted(shares, rng.random(int(lengths.sum())) * shares[-1])]
            for document in np.split(drawn, np.cumsum(lengths)[:-1]):
                num_left -= file.write(" ".join(document) + ".\n")
                if num_left <= 0:
                    break


def _words(rng: np.random.Generator) -> list[str]:
    """Different words, the most frequent first."""
    counts = Counter(word for topic in pydoc_data.topics.topics.values() for word in topic.split() if word.isprintable())
    words = dict.fromkeys(word for word, _ in counts.most_common())
    pairs = "".join(word for word in words if word.isalpha() and word.isascii()).lower()
    while len(words) < NUM_WORDS:
        begins = rng.integers(0, len(pairs) - 4, (1000, 3))
        sizes = rng.integers(1, 5, (1000, 3))
        for parts in zip(begins.tolist(), sizes.tolist(), strict=True):
            words["".join(pairs[begin : begin + size] for begin, size in zip(*parts, strict=True))] = None
    return list(words)[:NUM_WORDS]
