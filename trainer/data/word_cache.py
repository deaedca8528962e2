"""Encodes text by its words, each of which goes through the tokenizer once.

For tokenizers that divide text by GPT-2's rule before anything else (Radford et al. 2019; `ByteLevel` in a
`tokenizer.json`). No alternative of that rule has whitespace after something else:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

So each run of whitespace begins a new piece, whatever comes before it, and what it looks ahead for is in the word that
follows: the tokens of a text are those of its words, each with the whitespace before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

# Some 500,000 words and 80 MB; of text without spaces the "words" are sentences, and hardly take more.
MAXIMUM_CHARACTERS = 2**22

# A word with the whitespace before it, or the whitespace at the end of a text.
_WORD = re.compile(r"\s*\S+|\s+")

# Whitespace to Python, but not to Unicode's property White_Space, which the rule goes by.
_SEPARATORS = "\x1c\x1d\x1e\x1f"


def divides_by_words(content: dict[str, Any]) -> bool:
    """Whether the tokenizer of a `tokenizer.json` gives a text the tokens of its words.

    Not where a prefix is put before each text, merges are left out at random, or tokens are found in the text as it is.
    """
    pre_tokenizer = content.get("pre_tokenizer") or {}
    return (
        pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer.get("add_prefix_space")
        and content.get("normalizer") is None
        and not content["model"].get("dropout")
        and all(token["special"] for token in content.get("added_tokens", ()))
    )


class WordCache:
    """Words by number, and the tokens of all of them, one word's after the other's: of word n those from bounds[n] to
    bounds[n + 1]."""

    _tokens: npt.NDArray[np.uint32]
    _bounds: npt.NDArray[np.int64]

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        self._model = model
        self._clear()

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The tokens of each text, as `Tokenizer.encode_batch_fast` of the model gives them."""
        if self._numbers.num_characters > MAXIMUM_CHARACTERS:
            self._clear()
        words = [[text] if any(each in text for each in _SEPARATORS) else _WORD.findall(text) for text in texts]
        numbers = np.fromiter(map(self._numbers.__getitem__, chain.from_iterable(words)), np.int64)
        self._encode(self._numbers.take_new())
        begins = self._bounds[numbers]
        lengths = self._bounds[numbers + 1] - begins
        ends = np.concatenate([[0], np.cumsum(lengths)])
        tokens = self._tokens[np.repeat(begins - ends[:-1], lengths) + np.arange(ends[-1])]
        bounds = ends[np.cumsum([0, *map(len, words)])]
        return [tokens[begin:end] for begin, end in pairwise(bounds)]

    def _encode(self, words: list[str]) -> None:
        encoded = [encoding.ids for encoding in self._model.encode_batch_fast(words, add_special_tokens=False)]
        self._tokens = np.concatenate([self._tokens, np.fromiter(chain.from_iterable(encoded), np.uint32)])
        ends = np.cumsum([self._bounds[-1], *map(len, encoded)])
        self._bounds = np.concatenate([self._bounds, ends[1:]])

    def _clear(self) -> None:
        self._numbers = _Numbers()
        self._tokens = np.zeros(0, np.uint32)
        self._bounds = np.zeros(1, np.int64)


class _Numbers(dict[str, int]):
    """Gives each word that it is asked for the next number, and keeps the new ones in order."""

    def __init__(self) -> None:
        super().__init__()
        self.num_characters = 0
        self._new: list[str] = []

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.num_characters += len(word)
        self._new.append(word)
        return number

    def take_new(self) -> list[str]:
        new, self._new = self._new, []
        return new
