"""Which sample comes n-th in a run: a function of n and the seed alone, so that there is no state to save.

It does not depend on how many replicas there are, and the millionth step costs what the first does.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.windows import Int64Array
from trainer.errors import DataError

# Of the raw operation. With its default of 4, neighbours of a large store correlate (0.08 at lag one over 10 million
# samples) and the means of batches of 512 spread twice as far as chance would have them; 12 pass both tests.
SHUFFLE_ROUNDS = 12

# The raw operation permutes at least 2^16 numbers and tries again until it hits one below the size, which for a size
# of 2 takes half a millisecond an index. Below this size the whole permutation is made instead.
SMALLEST_LARGE_SIZE = 2**14

# With weights every so many samples hold each data set exactly as often as its weight says, rounded to a whole number.
MIXTURE_PERIOD = 1024

PADDING_ID = -1  # of a row without a sample

# The streams of random numbers: one that mixes data sets, and one for each data set's own order.
MIXING_STREAM = 0
FIRST_DATASET_STREAM = 1


class SampleOrder:
    """The order of a run over data sets of `sizes` samples.

    A sample's id is its number in the concatenation of all data sets. Without `weights` they are one data set: each
    sample comes once an epoch. With them, each data set is gone through in epochs of its own, as often as its share
    asks for: within one of these every sample of it comes exactly once. With `chosen`, the numbers of the samples of each
    data set that are meant, all this is of these alone; ids stay what they are.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None,
        seed: int,
        chosen: Sequence[Int64Array] | None = None,
    ) -> None:
        self._firsts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._chosen_ids: Int64Array | None = None
        if chosen is not None:
            self._chosen_ids = np.concatenate([first + each for first, each in zip(self._firsts[:-1], chosen, strict=True)])
            sizes = [len(each) for each in chosen]
        assert sizes and all(size > 0 for size in sizes)
        self._sizes = np.asarray(sizes, np.int64)
        self._places = np.concatenate([[0], np.cumsum(self._sizes)])  # where each data set begins among those that are meant
        self._seed = seed
        self._counts = None if weights is None else _mixture_counts(weights)

    @property
    def num_samples(self) -> int:
        """That are meant."""
        return int(self._places[-1])

    def with_seed(self, seed: int) -> SampleOrder:
        """The order of the same data under another seed."""
        order = copy.copy(self)
        order._seed = seed
        return order

    def sample_ids(self, first: int, count: int) -> Int64Array:
        """The ids of the samples `first ... first + count - 1` of the run."""
        positions = np.arange(first, first + count, dtype=np.int64)
        if self._counts is None:
            epochs, within = np.divmod(positions, self.num_samples)
            places = _shuffle(within, self.num_samples, self._seed, FIRST_DATASET_STREAM, epochs)
        else:
            places = self._mixed_places(positions, self._counts)
        return self.ids_at(places)

    def ids_at(self, places: Int64Array) -> Int64Array:
        """The ids of the samples at these places among those that are meant."""
        return places if self._chosen_ids is None else self._chosen_ids[places]

    def _mixed_places(self, positions: Int64Array, counts: Int64Array) -> Int64Array:
        """The n-th sample drawn from a data set of size N is the (n mod N)-th of that data set's epoch n // N."""
        periods, within = np.divmod(positions, MIXTURE_PERIOD)
        datasets, drawn_before = np.empty_like(positions), np.empty_like(positions)
        for period in np.unique(periods).tolist():
            here = periods == period
            datasets_of_period, ranks = self._mix(period, counts)
            datasets[here] = datasets_of_period[within[here]]
            drawn_before[here] = period * counts[datasets[here]] + ranks[within[here]]
        sizes = self._sizes[datasets]
        epochs, within_epoch = np.divmod(drawn_before, sizes)
        streams = FIRST_DATASET_STREAM + datasets
        return self._places[datasets] + _shuffle(within_epoch, sizes, self._seed, streams, epochs)

    def _mix(self, period: int, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
        """For each place of a period the data set drawn from, and how often it was drawn from before in the period."""
        places = _permutation(MIXTURE_PERIOD, self._seed, MIXING_STREAM, period)
        datasets = np.repeat(np.arange(len(counts)), counts)[places]
        by_dataset = np.argsort(datasets, kind="stable")
        ranks = np.empty_like(datasets)
        ranks[by_dataset] = np.arange(MIXTURE_PERIOD) - np.repeat(np.cumsum(counts) - counts, counts)
        return datasets, ranks

    def locate(self, ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        """For each id its data set and its number within it."""
        datasets = np.searchsorted(self._firsts, ids, side="right") - 1
        return datasets, ids - self._firsts[datasets]

    def epoch(self, num_seen: int) -> float:
        """How often the run has gone through its data after `num_seen` samples; with weights, on average."""
        return num_seen / self.num_samples


def _mixture_counts(weights: Sequence[float]) -> Int64Array:
    """Whole numbers in proportion to the weights that add up to the period, by largest remainder, each at least 1."""
    if len(weights) > MIXTURE_PERIOD:
        raise DataError(
            f"data.train: got {len(weights)} weighted sources, expected at most {MIXTURE_PERIOD}; join some by a glob"
        )
    exact = np.asarray(weights, np.float64) / np.sum(weights) * MIXTURE_PERIOD
    counts: Int64Array = np.maximum(np.floor(exact), 1).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: max(0, MIXTURE_PERIOD - counts.sum())]] += 1
    # What the small ones were given beyond their share comes from the largest.
    for _ in range(counts.sum() - MIXTURE_PERIOD):
        counts[np.argmax(counts)] -= 1
    return counts


def _shuffle(
    indices: Int64Array, sizes: int | Int64Array, seed: int, streams: int | Int64Array, epochs: Int64Array
) -> Int64Array:
    """Where each index goes in the permutation of `range(size)` that seed, stream and epoch choose."""
    sizes = np.broadcast_to(np.asarray(sizes, np.int64), indices.shape)
    streams = np.broadcast_to(np.asarray(streams, np.int64), indices.shape)
    shuffled = np.empty_like(indices)
    large = sizes >= SMALLEST_LARGE_SIZE
    if np.any(large):
        shuffled[large] = _shuffle_large(indices[large], sizes[large], seed, streams[large], epochs[large])
    if not np.all(large):
        small = zip(sizes[~large].tolist(), streams[~large].tolist(), epochs[~large].tolist(), strict=True)
        for size, stream, epoch in sorted(set(small)):
            chosen = (streams == stream) & (epochs == epoch)
            shuffled[chosen] = _permutation(size, seed, stream, epoch)[indices[chosen]]
    return shuffled


def _shuffle_large(indices: Int64Array, sizes: Int64Array, seed: int, streams: Int64Array, epochs: Int64Array) -> Int64Array:
    seeds = np.empty((len(indices), 3), np.uint32)
    seeds[:, 0], seeds[:, 1], seeds[:, 2] = seed, streams, epochs
    return _shuffle_by(seeds, indices, sizes)


def _shuffle_by(seeds: npt.NDArray[np.uint32], indices: Int64Array, sizes: Int64Array) -> Int64Array:
    with tf.device("CPU:0"):
        shuffled = tf.raw_ops.RandomIndexShuffle(index=indices, seed=seeds, max_index=sizes - 1, rounds=SHUFFLE_ROUNDS)
    ids: Int64Array = shuffled.numpy()
    return ids


def first_of_permutation(size: int, count: int, key: bytes) -> Int64Array:
    """Where the first `count` go in the permutation of `range(size)` that a key of 16 bytes chooses."""
    if size < SMALLEST_LARGE_SIZE:
        generator = np.random.Philox(key=int.from_bytes(key, "little"))
        return np.argsort(generator.random_raw(size), kind="stable")[:count].astype(np.int64)
    seeds = np.tile(np.frombuffer(key[:12], "<u4").astype(np.uint32), (count, 1))
    return _shuffle_by(seeds, np.arange(count, dtype=np.int64), np.full(count, size, np.int64))


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int, stream: int, epoch: int) -> Int64Array:
    """A whole permutation, by sorting random numbers; their sequence is fixed for all versions of NumPy (NEP 19)."""
    generator = np.random.Philox(key=np.array([seed << 32 | stream, epoch], np.uint64))
    return np.argsort(generator.random_raw(size), kind="stable").astype(np.int64)
