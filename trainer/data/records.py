"""The records of a token store, and which of them lie side by side in packed rows: views of its files.

Which columns a task's records have stands in `trainer.data.columns`. No TensorFlow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.arrow_files import Batch, Lists, Numbers
from trainer.data.windows import Int32Array, Int64Array

UnsignedArray = npt.NDArray[np.unsignedinteger[Any]]


class RecordTable:
    """The records of one data set of a store, in the order of its parts; nothing is read before it is asked for.

    Any number of threads may read.
    """

    def __init__(self, name: str, batches: Sequence[Batch]) -> None:
        """`name` is for complaints. The batches have the same columns."""
        self.name = name
        columns = batches[0].columns if batches else {}
        batches = [batch for batch in batches if batch.num_rows]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        self._lists: dict[str, list[Lists]] = {column: [batch.columns[column] for batch in batches] for column in columns}

    @property
    def num_records(self) -> int:
        return int(self._starts[-1])

    def has(self, column: str) -> bool:
        return column in self._lists

    def tokens(self, column: str, number: int) -> UnsignedArray:
        """The tokens of a record: a view, unsigned integers of 16 or 32 bits."""
        return self._list(column, number)

    def integers(self, column: str, number: int) -> Int32Array:
        """A record's list of numbers: a view."""
        return self._list(column, number)

    def lengths(self, column: str) -> Int64Array:
        """How long each record's list is [num_records]."""
        lengths = [np.diff(np.asarray(lists.offsets)) for lists in self._lists.get(column, [])]
        return np.concatenate([*lengths, np.zeros(0, np.int64)]).astype(np.int64)

    def firsts(self, column: str) -> Int64Array:
        """The first of each record's list of numbers [num_records]; -1 where a list is empty."""
        firsts = []
        for lists in self._lists.get(column, []):
            offsets = np.asarray(lists.offsets)
            begins, is_empty = offsets[:-1], np.diff(offsets) == 0
            values = np.append(lists.values, -1)  # for the empty lists at the end
            firsts.append(np.where(is_empty, -1, values[begins]))
        return np.concatenate([*firsts, np.zeros(0, np.int64)]).astype(np.int64)

    def groups(self) -> Int64Array | None:
        """The group of each record [num_records]; None where they have none."""
        return self.firsts("group") if self.has("group") else None

    def text(self, column: str, number: int) -> str:
        return self._list(column, number).tobytes().decode()

    def _list(self, column: str, number: int) -> npt.NDArray[Any]:
        batch, row = self._place(number)
        return self._lists[column][batch].read(row)

    def _place(self, number: int) -> tuple[int, int]:
        """The record batch that holds a record, and its row there."""
        assert 0 <= number < self._starts[-1], f"{self.name}: no record {number}"
        batch = bisect_right(self._starts, number) - 1
        return batch, number - self._starts[batch]


@dataclass(frozen=True)
class PackedRows:
    """Which pieces of a data set lie in which row, as best fit decided: row i has `numbers[starts[i] : starts[i + 1]]`.

    A piece is what `trainer.data.assembly.piece_lengths` counts: a record, or a document of a stream that is cut to fit.
    `num_real_tokens` of the `num_places` that all rows together have are not padding.
    """

    starts: Numbers = field(repr=False)
    numbers: Numbers = field(repr=False)
    num_real_tokens: int
    num_places: int

    @property
    def num_rows(self) -> int:
        return len(self.starts) - 1

    @property
    def max_pieces(self) -> int:
        """The most pieces that any row has."""
        return int(np.diff(np.asarray(self.starts)).max(initial=0))

    def pieces(self, row: int) -> Int64Array:
        """The numbers of the pieces in a row, in their order there: a view."""
        begin, end = self.starts[row : row + 2].tolist()
        return self.numbers[begin:end]
