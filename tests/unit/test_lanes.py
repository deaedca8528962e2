"""How many lanes there are, and what rows each has. What they compute: test_step.py and test_backends.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.toy_training import VOCABULARY_SIZE, config
from trainer.lanes import LEAST_TOKENS_A_WEIGHT, choose_num_lanes, in_lanes, num_lanes_being_built
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

pytestmark = pytest.mark.usefixtures("tensorflow")

SIZES = Sizes(VOCABULARY_SIZE)


@pytest.mark.parametrize(
    ("sections", "num_replicas", "num_cores", "expected"),
    [
        ({}, 1, 2, 2),
        ({}, 1, 8, 8),
        ({}, 2, 4, 4),
        ({}, 2, 8, 1),  # four rows each
        ({}, 1, 3, 1),
        ({}, 1, 1, 1),
        ({"train": {"micro_batch_size": 4}}, 1, 8, 1),
        ({"train": {"micro_batch_size": 4}}, 1, 4, 4),
        ({"train": {"global_batch_size": 64}}, 1, 16, 1),  # gradients sixteen times
        ({"train": {"compile": "xla"}}, 1, 2, 1),
        ({"train": {"compile": "elementwise"}}, 1, 2, 2),
    ],
)
def test_each_core_has_a_lane_where_the_rows_divide(
    sections: Mapping[str, Any], num_replicas: int, num_cores: int, expected: int
) -> None:
    assert choose_num_lanes(config(**sections), SIZES, num_replicas, num_cores) == expected


def test_there_are_tokens_enough_for_the_weights_to_be_worth_a_lane() -> None:
    settings = config(model={"width": 1024})
    weights = sum(each.num_elements for each in run_parameters(settings, SIZES).values())
    rows = 2 * int(LEAST_TOKENS_A_WEIGHT * weights / 10 + 1)  # of 10 tokens
    for global_batch_size, expected in ((rows, 2), (rows - 2, 1)):
        enough = config(model={"width": 1024}, train={"global_batch_size": global_batch_size})
        assert choose_num_lanes(enough, SIZES, 1, 2) == expected


def test_where_texts_are_written_they_have_all_cores() -> None:
    written = config().model_copy(update={"evaluation": config().evaluation.model_copy(update={"generate": 4})})
    assert choose_num_lanes(written, SIZES, 1, 2) == 1


def test_each_lane_has_rows_of_its_own() -> None:
    features = {"inputs": tf.range(12)[:, None], "labels": tf.range(12)}
    seen = in_lanes(lambda rows, first: (rows, first, num_lanes_being_built()), features, 100, 3)
    assert [(first, lanes) for _, first, lanes in seen] == [(100, 3), (104, 3), (108, 3)]
    for number, (rows, _, _) in enumerate(seen):
        np.testing.assert_array_equal(rows["labels"], range(4 * number, 4 * number + 4))
        np.testing.assert_array_equal(rows["inputs"][:, 0], rows["labels"])
    assert num_lanes_being_built() == 1
