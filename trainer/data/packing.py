"""Puts pieces of unequal length side by side into rows of fixed length, so that little of a row is padding. No TensorFlow.

N: pieces, K: kinds of pieces, R: rows. A piece has one length, or two where it has two sides: what an encoder reads, and
what the decoder writes, which lie in two rows of lengths of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trainer.data.windows import Int64Array

# Lengths of two sides are told apart only so far, where there are many: choosing takes time by their number.
MOST_KINDS = 4096
STEPS_A_SIDE = 64

# What a row's sides being unequally full weighs against their being full. Where one side is full and the other is not,
# nothing fits any more. Of 1 to 10, 1 to 3 gave the fewest rows for the sentences of Multi30k.
BALANCE = 3


def pack_best_fit(
    lengths: Int64Array, capacities: tuple[int, ...], max_pieces: int | None = None
) -> tuple[Int64Array, Int64Array]:
    """Packs pieces of `lengths` [N, sides], at most `capacities`, into rows of that length and of at most `max_pieces`.

    With one side by best fit decreasing: each piece, the largest first, goes where it leaves least room, or into a new row
    (Johnson 1974: at most 11/9 of the fewest rows possible; texts, most of them short, come much closer). With two sides
    the rows are filled one after the other: the largest piece that is left, then always what fills the row best while
    both sides stay equally full. Piece by piece, more than twice as much
    of rows of sentences and their translations stays empty.

    Returns starts [R + 1] and numbers [N]: row i holds the pieces `numbers[starts[i] : starts[i + 1]]`, in order of their
    numbers. The same lengths always give the same rows.
    """
    assert lengths.ndim == 2 and lengths.shape[1] == len(capacities) in (1, 2)
    assert len(lengths) == 0 or (lengths.max(axis=0) <= capacities).all(), "a piece does not fit into any row"
    most = max_pieces or max(1, len(lengths))
    row_of = np.empty(len(lengths), np.int64)
    if len(capacities) == 1:
        order = np.argsort(-lengths[:, 0], kind="stable")
        row_of[order] = np.fromiter(_rows_of_pieces(lengths[order, 0].tolist(), capacities[0], most), np.int64, len(order))
    else:
        for row, pieces in enumerate(_pieces_of_rows(lengths, capacities, most)):
            row_of[pieces] = row
    numbers = np.argsort(row_of, kind="stable").astype(np.int64)
    return np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64), numbers


def _rows_of_pieces(lengths: list[int], capacity: int, max_pieces: int) -> Iterator[int]:
    """The row of each piece. Bit r of `rooms` says whether any row has room for r more, so that the least room that is
    enough takes one shift to find."""
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    num_pieces: list[int] = []
    rooms = 0
    for length in lengths:
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            rows = rows_by_room[room]
            row = rows.pop()
            if not rows:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(num_pieces)
            num_pieces.append(0)
        num_pieces[row] += 1
        if num_pieces[row] < max_pieces:
            left = room - length
            rows_by_room[left].append(row)
            rooms |= 1 << left
        yield row


def _pieces_of_rows(lengths: Int64Array, capacities: tuple[int, ...], max_pieces: int) -> Iterator[list[int]]:
    """The pieces of each row."""
    kinds = _Kinds(lengths, capacities)
    while (kind := kinds.largest()) is not None:
        pieces: list[int] = []
        rooms = list(capacities)
        while kind is not None:
            piece = kinds.take(kind)
            pieces.append(piece)
            rooms = [room - length for room, length in zip(rooms, lengths[piece].tolist(), strict=True)]
            kind = kinds.best(rooms[0], rooms[1]) if len(pieces) < max_pieces else None
        yield pieces


class _Kinds:
    """Pieces of two sides that are not yet in a row, by kinds: those of a kind have the same lengths, or nearly so.

    Kinds are in the order of their first lengths [K]. Those that are used up have a second length that never fits, until
    they are many and taken out.
    """

    def __init__(self, lengths: Int64Array, capacities: tuple[int, ...]) -> None:
        self._capacities = capacities
        sizes, kind_of = np.unique(lengths, axis=0, return_inverse=True)
        if len(sizes) > MOST_KINDS:
            # Rounded up, so that what is thought to fit does.
            steps = np.array([-(-capacity // STEPS_A_SIDE) for capacity in capacities])
            rounded = np.minimum(-(-lengths // steps) * steps, capacities)
            sizes, kind_of = np.unique(rounded, axis=0, return_inverse=True)
        kind_of = kind_of.reshape(-1)
        order = np.argsort(kind_of, kind="stable")
        ends = np.cumsum(np.bincount(kind_of, minlength=len(sizes)))
        # The last of each kind is taken first: so the pieces of low numbers come last, and first in the list.
        self._left = [part.tolist() for part in np.split(order, ends[:-1])] if len(sizes) else []
        self._names = np.arange(len(sizes))
        self._first, self._second = sizes[:, 0].copy(), sizes[:, 1].copy()
        # In units in which the two sides of a row are of one length.
        scaled = sizes * np.array(capacities[::-1])
        self._sum, self._difference = scaled.sum(axis=1), scaled[:, 0] - scaled[:, 1]
        # The larger its share of a row, the harder a piece is to place, on whichever side.
        self._by_size = np.lexsort((-self._sum, -scaled.max(axis=1))).tolist()[::-1]
        self._num_empty = 0

    def largest(self) -> int | None:
        while self._by_size and not self._left[self._by_size[-1]]:
            self._by_size.pop()
        return self._by_size[-1] if self._by_size else None

    def best(self, first_room: int, second_room: int) -> int | None:
        """The kind that fills the rooms best, or None where none fits."""
        end = int(np.searchsorted(self._first, first_room, side="right"))
        fits = np.flatnonzero(self._second[:end] <= second_room)
        if not len(fits):
            return None
        excess = first_room * self._capacities[1] - second_room * self._capacities[0]
        badness = BALANCE * np.abs(excess - self._difference[fits]) - self._sum[fits]
        return int(self._names[fits[np.argmin(badness)]])

    def take(self, kind: int) -> int:
        """A piece of a kind, which is then no longer there."""
        pieces = self._left[kind]
        piece: int = pieces.pop()
        if not pieces:
            self._second[np.searchsorted(self._names, kind)] = self._capacities[1] + 1
            self._num_empty += 1
            if 2 * self._num_empty > len(self._names):
                self._take_out_empty()
        return piece

    def _take_out_empty(self) -> None:
        kept = self._second <= self._capacities[1]
        self._names, self._first, self._second = self._names[kept], self._first[kept], self._second[kept]
        self._sum, self._difference = self._sum[kept], self._difference[kept]
        self._num_empty = 0
