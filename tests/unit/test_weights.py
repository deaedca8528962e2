"""Saved arrays that do not fit the model are named, each with what is wrong, and nothing is changed."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import CheckpointError
from trainer.weights import assign_weights

pytestmark = pytest.mark.usefixtures("tensorflow")


def variables() -> dict[str, tf.Variable]:
    return {"embedding": tf.Variable(tf.zeros((3, 2))), "gain": tf.Variable(tf.ones(2))}


def test_arrays_that_fit_are_assigned() -> None:
    ours = variables()
    saved = {"gain": np.full(2, 5.0, np.float32), "embedding": np.arange(6, dtype=np.float32).reshape(3, 2)}
    assign_weights(ours, saved, "step-1")
    for name, variable in ours.items():
        np.testing.assert_array_equal(variable.numpy(), saved[name])


def test_every_missing_foreign_or_misshapen_array_is_named() -> None:
    ours = variables()
    with pytest.raises(CheckpointError) as error:
        assign_weights(ours, {"embedding": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)}, "step-1")
    for said in ("step-1", "gain is missing", "bias is not part of the model", "embedding is (4, 2) instead of (3, 2)"):
        assert said in str(error.value)
    assert not ours["embedding"].numpy().any() and (ours["gain"].numpy() == 1).all()


def test_of_many_that_do_not_fit_some_are_named_and_the_rest_counted() -> None:
    ours = {f"weight.{number}": tf.Variable(0.0) for number in range(20)}
    with pytest.raises(CheckpointError, match=r"weight\.0 is missing.*and 12 more"):
        assign_weights(ours, {}, "step-1")
