"""The gradient by a table, of which the step has that by the rows that were looked up apart."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.models.apart import compiled_apart
from trainer.models.lookups import look_up, lookups_apart

pytestmark = pytest.mark.usefixtures("tensorflow")

PLACES = np.array([[1, 1, 3], [0, 1, 3]])
TABLE_VD = np.arange(10, dtype=np.float32).reshape(5, 2)


def loss(table_VD: tf.Tensor) -> tf.Tensor:
    """A tied output's: the table is looked up in, and multiplied with."""
    rows = look_up(table_VD, PLACES)
    return tf.reduce_sum(tf.square(rows)) + tf.reduce_sum(rows @ tf.transpose(table_VD))


def apart(table_VD: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(table_VD)
        with lookups_apart({"table": table_VD}, tape) as lookups:
            result = loss(table_VD)
    by_table, *by_rows = tape.gradient(result, [table_VD, *lookups.rows])
    return lookups.added({"table": by_table}, by_rows)["table"]


def apart_in_place(table_VD: tf.Tensor) -> tf.Tensor:
    with compiled_apart():
        return apart(table_VD)


@pytest.mark.parametrize("compute", [apart, apart_in_place, tf.function(apart, jit_compile=True)])
def test_the_gradients_by_table_and_rows_add_up_to_the_dense_one(compute: tf.types.experimental.PolymorphicFunction) -> None:
    table = tf.constant(TABLE_VD)
    with tf.GradientTape() as tape:
        tape.watch(table)
        result = loss(table)
    np.testing.assert_allclose(compute(table), tape.gradient(result, table), rtol=1e-6)


def test_what_is_looked_up_in_another_table_is_not_kept_apart() -> None:
    table = tf.constant(TABLE_VD)
    with tf.GradientTape() as tape:
        tape.watch(table)
        with lookups_apart({"another": tf.zeros((5, 2))}, tape) as lookups:
            rows = look_up(table, PLACES)
    assert lookups.rows == []
    np.testing.assert_array_equal(tape.gradient(rows, table)[:, 0], [1, 3, 0, 2, 0])


def test_in_place_no_other_tensor_changes() -> None:
    @tf.function(autograph=False)
    def both(table_VD: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        twice = table_VD * 2.0
        with compiled_apart(), tf.GradientTape() as tape, lookups_apart({"table": table_VD}, tape) as lookups:
            look_up(table_VD, PLACES)
        return twice, lookups.added({"table": twice}, [tf.ones((2, 3, 2))])["table"]

    kept, added = both(tf.constant(TABLE_VD))
    np.testing.assert_array_equal(kept, TABLE_VD * 2.0)
    np.testing.assert_array_equal((added - kept)[:, 0], [1, 3, 0, 2, 0])


def test_the_gradient_of_looking_up_is_dense_and_that_of_a_gather() -> None:
    table = tf.constant(np.random.default_rng(0).normal(size=(7, 3)), tf.float32)
    places = tf.constant([[1, 1, 6], [0, 1, 3]])
    upstream = tf.constant(np.random.default_rng(1).normal(size=(2, 3, 3)), tf.float32)

    def gradient(take: object) -> object:
        assert callable(take)
        with tf.GradientTape() as tape:
            tape.watch(table)
            rows = take(table, places)
        return tape.gradient(rows, table, output_gradients=upstream)

    ours, theirs = gradient(look_up), gradient(tf.gather)
    assert isinstance(ours, tf.Tensor) and not isinstance(ours, tf.IndexedSlices)
    np.testing.assert_allclose(ours.numpy(), tf.convert_to_tensor(theirs).numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_the_gradient_of_a_row_that_is_looked_up_often_keeps_growing(dtype: tf.DType) -> None:
    table, places = tf.zeros((3, 2), dtype), tf.constant([[1] * 2_000 + [2]])
    expected = np.array([[0, 0], [2_000, 2_000], [1, 1]])
    with tf.GradientTape() as tape:
        tape.watch(table)
        total = tf.reduce_sum(look_up(table, places))
    np.testing.assert_array_equal(tape.gradient(total, table), expected)
    with tf.GradientTape() as tape, lookups_apart({"table": table}, tape) as lookups:
        total = tf.reduce_sum(look_up(table, places))
    by_rows = tape.gradient(total, lookups.rows)
    np.testing.assert_array_equal(lookups.added({"table": tf.zeros((3, 2))}, by_rows)["table"], expected)
