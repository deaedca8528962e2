"""Puts sequences side by side into rows: where each token of a batch goes.

N: sequences of a batch, in the order of their rows, B: rows, T: places of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.records import PackedRows
from trainer.data.windows import Int32Array, Int64Array


class Contents:
    """Which pieces the rows of a batch hold: for each, its row, its number within the row, and that of the piece [N]."""

    def __init__(self, indices: Int64Array, packed: PackedRows | None) -> None:
        """`indices` [B] are of packed rows, or without any of the pieces, each of which has a row of its own; -1 is empty."""
        self.num_rows = len(indices)
        if packed is None:
            self.rows = np.flatnonzero(indices >= 0)
            self.pieces = indices[self.rows]
            self.numbers = np.zeros_like(self.rows)
            return
        pieces = [packed.pieces(index) if index >= 0 else packed.numbers[:0] for index in indices.tolist()]
        counts = np.fromiter(map(len, pieces), np.int64, len(pieces))
        self.rows = np.repeat(np.arange(len(indices)), counts)
        self.pieces = np.concatenate([*pieces, np.zeros(0, np.int64)]).astype(np.int64)
        self.numbers = np.arange(len(self.pieces)) - np.repeat(np.cumsum(counts) - counts, counts)


class Layout:
    """Sequences of `lengths` [N], each after the one before it in its row."""

    def __init__(self, contents: Contents, lengths: Int64Array, row_length: int) -> None:
        self._shape = (contents.num_rows, row_length)
        before = np.cumsum(lengths) - lengths
        firsts = np.arange(len(lengths)) - contents.numbers
        self.begins: Int64Array = before - before[firsts]  # within the row [N]
        assert not len(lengths) or (self.begins + lengths).max() <= row_length, "a row does not hold what was packed into it"
        within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
        self._places = np.repeat(contents.rows * row_length + self.begins, lengths) + within
        self._within = within
        self._numbers = np.repeat(contents.numbers + 1, lengths)

    def fill(self, values: npt.NDArray[Any], padding: int) -> Int32Array:
        """The values of all tokens, in order, in their places [B, T]."""
        row = np.full(self._shape, padding, np.int32)
        row.reshape(-1)[self._places] = values
        return row

    def segments(self) -> Int32Array:
        """The number of the sequence that each place belongs to, from 1; 0 is padding [B, T]."""
        return self.fill(self._numbers, 0)

    def positions(self) -> Int32Array:
        """Each token's place within its sequence [B, T]."""
        return self.fill(self._within, 0)


def lengths_of(sequences: Sequence[npt.NDArray[Any]]) -> Int64Array:
    return np.fromiter(map(len, sequences), np.int64, len(sequences))


def joined(sequences: Sequence[npt.NDArray[Any]]) -> Int32Array:
    """All sequences as one, also where there are none."""
    return np.concatenate([np.zeros(0, np.int32), *sequences]).astype(np.int32, copy=False)


class Rooms:
    """The places that each sequence of a batch may take.

    Where texts change these are at least those that it was packed with, and what the sequences before it in its row have
    left of theirs. Otherwise whatever was packed fits, and a row is the limit.
    """

    def __init__(self, row_length: int, contents: Contents, piece_lengths: Int64Array | None) -> None:
        """`piece_lengths`, by number of the piece, are what packed texts that change were packed with."""
        self._row_length = row_length
        self._planned: list[int] | None = None
        if piece_lengths is not None:
            planned = piece_lengths[contents.pieces]
            self._rows, self._planned = contents.rows.tolist(), planned.tolist()
            totals = np.bincount(contents.rows, planned, contents.num_rows).astype(np.int64)
            self._left: list[int] = (row_length - totals).tolist()  # by row, what no sequence was packed with

    def of(self, number: int) -> int:
        if self._planned is None:
            return self._row_length
        return self._planned[number] + self._left[self._rows[number]]

    def take(self, number: int, length: int) -> None:
        """Says how many places a sequence took."""
        if self._planned is not None:
            self._left[self._rows[number]] += self._planned[number] - length
