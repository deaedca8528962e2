"""Sequences of unequal length as rows of one shape. B: rows of a batch, T: places of a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.generation import padded_length

Row = TypeVar("Row")


def batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """As many as there are, `size` at a time; they are asked for when they are needed."""
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def rectangle(
    sequences: Sequence[npt.NDArray[np.integer[Any]]], padding: int, num_rows: int, limit: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Sequences with padding behind them, and segments, 1 where there is a token of theirs: int32 [B, T]. There are always
    `num_rows` rows, of at most `limit` places."""
    length = padded_length(max(map(len, sequences)), limit)
    tokens = np.full((num_rows, length), padding, np.int32)
    segments = np.zeros((num_rows, length), np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        segments[row, : len(sequence)] = 1
    return tokens, segments
