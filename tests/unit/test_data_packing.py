"""Packed rows hold every piece once and never more than fits, are the same every time, and are nearly full."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trainer.data import packing
from trainer.data.packing import pack_best_fit


def lengths_of(num_pieces: int, capacities: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Lengths as sentences have them, of two sides about as long as each other."""
    generator = np.random.default_rng(seed)
    first = generator.lognormal(2.6, 0.4, num_pieces)
    sides = [first, first * generator.lognormal(0.1, 0.2, num_pieces)][: len(capacities)]
    return np.minimum(np.stack(sides, 1).astype(np.int64) + 1, capacities)


def rows_of(lengths: np.ndarray, capacities: tuple[int, ...], max_pieces: int | None = None) -> list[list[int]]:
    """The rows, after holding them against what any packing must be."""
    starts, numbers = pack_best_fit(lengths, capacities, max_pieces)
    assert starts.dtype == numbers.dtype == np.int64
    rows = [numbers[begin:end].tolist() for begin, end in itertools.pairwise(starts.tolist())]
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    for row in rows:
        assert row and row == sorted(row)
        assert (lengths[row].sum(axis=0) <= capacities).all()
        assert max_pieces is None or len(row) <= max_pieces
    return rows


@pytest.mark.parametrize("capacities", [(32,), (128,), (32, 40), (128, 148)])
@pytest.mark.parametrize("max_pieces", [None, 3])
def test_rows_hold_every_piece_once_and_no_more_than_fits(capacities: tuple[int, ...], max_pieces: int | None) -> None:
    rows_of(lengths_of(2000, capacities), capacities, max_pieces)


def test_best_fit_takes_the_row_with_the_least_room_that_is_enough() -> None:
    lengths = np.array([[6], [7], [3], [4], [5], [5]])
    assert sorted(rows_of(lengths, (10,))) == [[0, 3], [1, 2], [4, 5]]


def test_two_sides_are_filled_equally() -> None:
    # By their sums, 0 and 1 would go together, and 2 and 3: neither pair fits on both sides.
    lengths = np.array([[8, 2], [8, 2], [2, 8], [2, 8]])
    assert sorted(map(sorted, rows_of(lengths, (10, 10)))) in ([[0, 2], [1, 3]], [[0, 3], [1, 2]])


@pytest.mark.parametrize("capacities", [(128,), (128, 148), (96, 111)])
def test_rows_of_sentences_are_at_least_97_percent_full(capacities: tuple[int, ...]) -> None:
    lengths = lengths_of(20_000, capacities)
    num_rows = len(rows_of(lengths, capacities))
    fewest = max(-(-total // capacity) for total, capacity in zip(lengths.sum(axis=0), capacities, strict=True))
    assert num_rows <= fewest / 0.97


def test_many_kinds_of_lengths_are_rounded_up_and_still_fit() -> None:
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 300, (12_000, 2))
    assert len(np.unique(lengths, axis=0)) > packing.MOST_KINDS
    rows = rows_of(lengths, (1000, 1000))
    assert len(rows) <= lengths.sum(axis=0).max() / 1000 / 0.96


def test_the_same_lengths_give_the_same_rows() -> None:
    for capacities in ((64,), (64, 80)):
        lengths = lengths_of(3000, capacities)
        first, second = pack_best_fit(lengths, capacities), pack_best_fit(lengths.copy(), capacities)
        assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "lengths",
    [np.zeros((0, 1), np.int64), np.zeros((3, 1), np.int64), np.zeros((0, 2), np.int64), np.zeros((3, 2), np.int64)],
)
def test_no_pieces_and_empty_ones_are_packed_too(lengths: np.ndarray) -> None:
    assert len(rows_of(lengths, (8,) * lengths.shape[1])) == min(1, len(lengths))


def test_a_piece_that_fits_nowhere_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="does not fit"):
        pack_best_fit(np.array([[9]]), (8,))
