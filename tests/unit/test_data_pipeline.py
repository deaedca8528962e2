"""Pipelines give the order's samples, the same ones however many replicas take them, from any step on."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.unit.test_data_windows import stream
from trainer.config import BatchPlan
from trainer.data.order import SampleOrder
from trainer.data.pipeline import evaluation_batches, training_batches
from trainer.data.windows import DocumentWindows, PackedWindows, Samples

pytestmark = pytest.mark.usefixtures("tensorflow")

LENGTH = 4
BATCH = 48
FIRST_SAMPLE = 5 * BATCH + 7  # as after a rollback: no multiple of the batch


@pytest.fixture
def samples() -> list[Samples]:
    """Two data sets whose every token says where it is, so that rows can be told apart."""
    return [
        PackedWindows(stream([list(range(100, 500))]), LENGTH),
        DocumentWindows(stream([[*range(1000 + 7 * number, 1006 + 7 * number), 9] for number in range(40)]), LENGTH),
    ]


def plan_of(num_replicas: int, num_micro_batches: int = 2) -> BatchPlan:
    return BatchPlan(BATCH, num_replicas, num_micro_batches, BATCH // num_replicas // num_micro_batches)


def rows_of(dataset: object, num_elements: int) -> dict[str, np.ndarray]:
    """The rows of the first elements, put together in the order of the global batches."""
    elements = list(dataset.take(num_elements).as_numpy_iterator())  # type: ignore[attr-defined]
    rows = {name: np.concatenate([e[name].reshape(-1, *e[name].shape[2:]) for e in elements]) for name in elements[0]}
    starts = [step_first + e["first_row"] for step_first, e in zip(np.arange(num_elements), elements, strict=True)]
    assert all(np.all(np.diff(start) > 0) for start in starts if len(start) > 1)
    return rows


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 8])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_replicas_together_get_exactly_the_order_s_samples(
    samples: list[Samples], num_replicas: int, weights: list[float] | None
) -> None:
    order = SampleOrder([part.num_samples for part in samples], weights, seed=2)
    dataset = training_batches(samples, order, plan_of(num_replicas), FIRST_SAMPLE, range(num_replicas))
    rows = rows_of(dataset, 3 * num_replicas)
    ids = order.sample_ids(FIRST_SAMPLE, 3 * BATCH)
    assert np.array_equal(rows["sample_ids"], ids)
    for row, (number, index) in enumerate(zip(*order.locate(ids), strict=True)):
        arrays = samples[number].gather(np.array([index]), np.array([FIRST_SAMPLE + row]))
        assert np.array_equal(rows["inputs"][row], arrays["inputs"][0])
        assert np.array_equal(rows["targets"][row], arrays["targets"][0])


def test_processes_take_their_own_replicas(samples: list[Samples]) -> None:
    order = SampleOrder([part.num_samples for part in samples], None, seed=2)
    whole = list(training_batches(samples, order, plan_of(4), 0, range(4)).take(8).as_numpy_iterator())
    second = list(training_batches(samples, order, plan_of(4), 0, range(2, 4)).take(4).as_numpy_iterator())
    for element, expected in zip(second, [whole[2], whole[3], whole[6], whole[7]], strict=True):
        for name in expected:
            assert np.array_equal(element[name], expected[name])
    assert second[0]["first_row"].tolist() == [24, 30]


def test_shapes_are_static_and_there_is_no_end(samples: list[Samples]) -> None:
    order = SampleOrder([part.num_samples for part in samples], None, seed=2)
    training = training_batches(samples, order, plan_of(2), 0, range(2))
    validation, _ = evaluation_batches(samples, plan_of(2), None, range(2), seed=0)
    for dataset in (training, validation):
        shapes = {name: (tuple(spec.shape), spec.dtype.name) for name, spec in dataset.element_spec.items()}
        assert shapes == {
            "inputs": ((2, 12, LENGTH), "int32"),
            "targets": ((2, 12, LENGTH), "int32"),
            "sample_ids": ((2, 12), "int64"),
            "first_row": ((2,), "int64"),
            "first_position": ((2,), "int64"),
        }
        assert dataset.cardinality().numpy() == -1


def test_going_on_at_step_one_million_costs_what_step_zero_costs(samples: list[Samples]) -> None:
    order = SampleOrder([part.num_samples for part in samples], None, seed=2)
    started = time.perf_counter()
    rows = rows_of(training_batches(samples, order, plan_of(1), 1_000_000 * BATCH, range(1)), 1)
    assert time.perf_counter() - started < 2
    assert np.array_equal(rows["sample_ids"], order.sample_ids(1_000_000 * BATCH, BATCH))


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_evaluation_takes_each_sample_once_and_fills_up_with_padding(samples: list[Samples], num_replicas: int) -> None:
    total = sum(part.num_samples for part in samples)
    dataset, num_batches = evaluation_batches(samples, plan_of(num_replicas), None, range(num_replicas), seed=0)
    assert num_batches == -(-total // BATCH)
    assert total % BATCH
    rows = rows_of(dataset, (num_batches + 1) * num_replicas)
    ids = rows["sample_ids"]
    assert np.array_equal(np.sort(ids[:total]), np.arange(total))
    assert np.all(ids[total:] == -1)
    assert np.all(rows["targets"][total:] == -1)
    assert np.all(rows["targets"][:total].max(axis=1) > 0)


def test_the_first_batches_of_an_evaluation_are_a_sample_of_all(samples: list[Samples]) -> None:
    dataset, num_batches = evaluation_batches(samples, plan_of(1), 2, range(1), seed=0)
    assert num_batches == 2
    ids = rows_of(dataset, 2)["sample_ids"]
    assert ids.min() < samples[0].num_samples // 4
    assert ids.max() >= samples[0].num_samples
    assert evaluation_batches(samples, plan_of(1), 1000, range(1), seed=0)[1] < 1000
