"""How many lanes there are, and what rows each has. What they compute: test_step.py and test_backends.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.toy_training import VOCABULARY_SIZE, config
from trainer.check import estimate_memory
from trainer.config import plan_batches
from trainer.lanes import LARGEST_SHARE, choose_num_lanes, in_lanes, num_lanes_being_built
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

pytestmark = pytest.mark.usefixtures("tensorflow")

SIZES = Sizes(VOCABULARY_SIZE)


LONG = {"sequence_length": 64}  # so that activations take fifty times the memory of the toy's gradients


@pytest.mark.parametrize(
    ("train", "num_replicas", "num_cores", "expected"),
    [
        ({}, 1, 2, 2),
        ({}, 1, 8, 8),
        ({}, 2, 4, 4),
        ({}, 2, 8, 1),  # four rows each
        ({}, 1, 3, 1),
        ({}, 1, 1, 1),
        ({"micro_batch_size": 4}, 1, 8, 1),
        ({"micro_batch_size": 4}, 1, 4, 4),
        ({"global_batch_size": 16}, 1, 16, 1),  # more than are added up
        ({"compile": "xla"}, 1, 2, 1),
        ({"compile": "elementwise"}, 1, 2, 2),
    ],
)
def test_each_core_has_a_lane_where_the_rows_divide(
    train: Mapping[str, Any], num_replicas: int, num_cores: int, expected: int
) -> None:
    assert choose_num_lanes(config(data=LONG, train=train), SIZES, num_replicas, num_cores) == expected


def test_the_gradients_of_all_lanes_take_less_memory_than_the_activations() -> None:
    settings = config(train={"global_batch_size": 16})
    memory = estimate_memory(settings, plan_batches(settings.train, 1), run_parameters(settings, SIZES), VOCABULARY_SIZE)
    assert 8 <= LARGEST_SHARE * memory.activations / memory.gradients < 16
    assert [choose_num_lanes(settings, SIZES, 1, num_cores) for num_cores in (8, 16)] == [8, 1]


def test_where_texts_are_written_they_have_all_cores() -> None:
    settings = config(data=LONG)
    written = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"generate": 4})})
    assert choose_num_lanes(written, SIZES, 1, 2) == 1


def test_each_lane_has_rows_of_its_own() -> None:
    features = {"inputs": tf.range(12)[:, None], "labels": tf.range(12)}
    seen = in_lanes(lambda rows, first: (rows, first, num_lanes_being_built()), features, 100, 3)
    assert [(first, lanes) for _, first, lanes in seen] == [(100, 3), (104, 3), (108, 3)]
    for number, (rows, _, _) in enumerate(seen):
        np.testing.assert_array_equal(rows["labels"], range(4 * number, 4 * number + 4))
        np.testing.assert_array_equal(rows["inputs"][:, 0], rows["labels"])
    assert num_lanes_being_built() == 1
