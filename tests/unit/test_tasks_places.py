"""Vectors at places of rows, and which places count."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from trainer.data.windows import NOT_COUNTED


def test_vectors_are_those_at_the_places(tensorflow: ModuleType) -> None:
    from trainer.tasks.places import vectors_at

    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    found = vectors_at(tensorflow.constant(x), tensorflow.constant([[4, 0], [2, 2]]))
    np.testing.assert_array_equal(found, np.stack([x[0, [4, 0]], x[1, [2, 2]]]))


def test_counted_places_come_first_and_in_order(tensorflow: ModuleType) -> None:
    from trainer.tasks.places import counted_places

    targets = np.full((2, 6), NOT_COUNTED, np.int32)
    targets[0, [1, 4, 5]] = [10, 0, 12]
    targets[1, 2] = 7
    places, found = counted_places(tensorflow.constant(targets), 3)
    assert places[0].numpy().tolist() == [1, 4, 5]
    assert found.numpy().tolist() == [[10, 0, 12], [7, -1, -1]]


def test_right_targets_are_counted_by_row(tensorflow: ModuleType) -> None:
    from trainer.tasks.losses import num_right, share_right

    likeliest = tensorflow.constant([[0, 1, 2], [2, 2, 2]])
    targets = np.array([[0, 1, 0], [-1, 2, -1]], np.int32)
    found = {name: value.numpy() for name, value in num_right(likeliest, tensorflow.constant(targets)).items()}
    assert {name: value.tolist() for name, value in found.items()} == {"right": [2, 1], "all": [3, 1]}
    assert share_right(found) == 0.75
