"""The order of samples: every one once an epoch, by the number of the sample alone, and as random as chance."""

from __future__ import annotations

import time

import numpy as np
import pytest

from trainer.config import BatchPlan
from trainer.data.order import MIXTURE_PERIOD, SMALLEST_LARGE_SIZE, SampleOrder, _mixture_counts

pytestmark = pytest.mark.usefixtures("tensorflow")

LARGE = SMALLEST_LARGE_SIZE + 1234


@pytest.mark.parametrize("sizes", [[1], [2], [37], [1, 1, 5, 100], [LARGE], [10, LARGE, 3]])
def test_every_sample_comes_once_an_epoch(sizes: list[int]) -> None:
    order, total = SampleOrder(sizes, None, seed=7), sum(sizes)
    epochs = [order.sample_ids(epoch * total, total) for epoch in range(3)]
    for ids in epochs:
        assert np.array_equal(np.sort(ids), np.arange(total))
    assert total < 10 or not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 8])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.5]])
def test_replicas_together_take_the_same_samples_however_many_there_are(num_replicas: int, weights: list[float] | None) -> None:
    order, batch = SampleOrder([LARGE, 50, 7], weights, seed=1), 48
    plan = BatchPlan(batch, num_replicas, 2, batch // 2 // num_replicas)
    taken = np.concatenate(
        [
            order.sample_ids(step * batch + row, plan.rows_per_micro_batch)
            for step in range(40)
            for replica in range(num_replicas)
            for row in plan.first_rows(replica)
        ]
    )
    assert np.array_equal(taken, order.sample_ids(0, 40 * batch))


def test_the_order_does_not_depend_on_where_one_starts() -> None:
    for weights in (None, [1.0, 2.0]):
        order = SampleOrder([LARGE, 1000], weights, seed=3)
        whole = order.sample_ids(0, 60_000)
        for first, count in ((0, 1), (1, 700), (59_000, 1000), (LARGE - 5, 1034)):
            assert np.array_equal(order.sample_ids(first, count), whole[first : first + count])


def test_in_a_mixture_each_data_set_goes_through_its_own_epochs() -> None:
    sizes, weights = [5000, LARGE, 1, 77], [5.0, 3.0, 0.001, 1.0]
    order = SampleOrder(sizes, weights, seed=11)
    datasets, within = order.locate(order.sample_ids(0, 60 * MIXTURE_PERIOD))
    for number, size in enumerate(sizes):
        visits = within[datasets == number]
        assert len(visits) == 60 * _mixture_counts(weights)[number]
        for begin in range(0, len(visits) - size + 1, size):
            assert np.array_equal(np.sort(visits[begin : begin + size]), np.arange(size))
        assert len(np.unique(visits[len(visits) // size * size :])) == len(visits) % size


def test_mixture_counts_follow_the_weights() -> None:
    assert _mixture_counts([1.0, 1.0]).tolist() == [512, 512]
    assert _mixture_counts([2.0, 1.0]).tolist() == [683, 341]
    assert _mixture_counts([1e9, 1e-9, 1.0]).tolist() == [1022, 1, 1]
    assert _mixture_counts([1.0] * 1000).sum() == MIXTURE_PERIOD
    assert _mixture_counts([0.7]).tolist() == [MIXTURE_PERIOD]


def test_places_of_a_mixture_are_spread_and_differ_from_period_to_period() -> None:
    datasets, _ = (order := SampleOrder([100, 100], [1.0, 1.0], seed=0)).locate(order.sample_ids(0, 4 * MIXTURE_PERIOD))
    periods = datasets.reshape(4, MIXTURE_PERIOD)
    assert not np.array_equal(periods[0], periods[1])
    assert np.all(np.abs(periods.reshape(-1, 128).mean(1) - 0.5) < 0.2)


def test_seeds_give_different_orders_and_locate_finds_the_data_set() -> None:
    first, second = (SampleOrder([LARGE], None, seed=seed).sample_ids(0, 100) for seed in (1, 2))
    assert not np.array_equal(first, second)
    datasets, within = SampleOrder([3, 1, 4], None, seed=0).locate(np.arange(8))
    assert datasets.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert within.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_the_order_is_what_it_was_when_released() -> None:
    """A run must go on after an upgrade: these values may never change."""
    assert SampleOrder([100], None, seed=1).sample_ids(0, 6).tolist() == SMALL_IDS
    assert SampleOrder([10**9], None, seed=1).sample_ids(0, 6).tolist() == LARGE_IDS
    assert SampleOrder([100, 10**9], [1.0, 2.0], seed=1).sample_ids(0, 6).tolist() == MIXED_IDS


SMALL_IDS = [98, 47, 23, 49, 82, 40]
LARGE_IDS = [319223369, 115605562, 844446479, 816562726, 890489045, 169507174]
MIXED_IDS = [41522154, 244616334, 924852619, 98, 333299819, 571634342]


@pytest.mark.parametrize("size", [SMALLEST_LARGE_SIZE - 1, SMALLEST_LARGE_SIZE, 10_000_000])
def test_samples_are_as_well_mixed_as_chance_would_have_them(size: int) -> None:
    ids = SampleOrder([size], None, seed=5).sample_ids(0, size)
    # Z-scores of: the correlation of neighbours, and the spread of the means of batches of 512 about the overall mean,
    # which for samples drawn without replacement from m batches is chi-squared with m - 1 degrees of freedom.
    standardized = (ids - ids.mean()) / ids.std()
    correlation = np.mean(standardized[:-1] * standardized[1:]) * np.sqrt(size)
    assert abs(correlation) < 4
    num_batches = size // 512
    spread = standardized[: num_batches * 512].reshape(num_batches, 512).mean(1).std() * np.sqrt(512)
    assert abs(spread - 1) < 4 / np.sqrt(2 * num_batches)


def test_a_batch_of_512_takes_well_under_a_millisecond_at_any_step() -> None:
    for order in (SampleOrder([10_000_000], None, 1), SampleOrder([10**7, 10**6, 10**4], [1.0, 2.0, 3.0], 1)):
        for step in (0, 1_000_000, 10**9):
            order.sample_ids(step * 512, 512)
            times = []
            for repetition in range(20):
                started = time.perf_counter()
                order.sample_ids((step + repetition) * 512, 512)
                times.append(time.perf_counter() - started)
            assert min(times) < 1e-3
