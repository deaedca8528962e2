"""Rows that are looked up in a table, and the gradient by the table.

That of a lookup is zero but for the rows that were looked up. Where the table is used otherwise too, as a tied output's is,
making it dense and adding it to the other gradient would write and read a table's size several times. So the step asks for the
gradients by the rows, and adds them to the other in their places.

Axes: V rows of a table, D width, N places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf

from trainer.models.apart import is_apart


class Lookups:
    """The rows that were looked up in some tables while a tape recorded. What comes through them is not in the gradients by the
    tables: ask the tape for those by `rows` too, and for their sum `added`."""

    def __init__(self, tables: Mapping[str, tf.Tensor], tape: tf.GradientTape) -> None:
        self.rows: list[tf.Tensor] = []
        self._names = {table.ref(): name for name, table in tables.items()}
        self._tape = tape
        self._found: list[tuple[str, tf.Tensor]] = []  # of each of `rows`, the table's name and the places
        self._scatter_add = _scatter_add_in_place if is_apart() else tf.tensor_scatter_nd_add

    def has(self, table: tf.Tensor) -> bool:
        return table.ref() in self._names

    def look_up(self, table: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        rows = tf.gather(tf.stop_gradient(table), places)
        self._tape.watch(rows)
        self.rows.append(rows)
        self._found.append((self._names[table.ref()], places))
        return rows

    def added(self, by_tables: Mapping[str, tf.Tensor], by_rows: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """The gradients by the tables (float32 [V, D]), with those by the rows in their places."""
        sums = dict(by_tables)
        for (name, places), upstream in zip(self._found, by_rows, strict=True):
            upstream_ND = tf.cast(tf.reshape(upstream, (-1, upstream.shape[-1])), tf.float32)
            sums[name] = self._scatter_add(sums[name], tf.reshape(places, (-1, 1)), upstream_ND)
        return sums


_recording: ContextVar[Lookups | None] = ContextVar("recording", default=None)


@contextmanager
def lookups_apart(tables: Mapping[str, tf.Tensor], tape: tf.GradientTape) -> Iterator[Lookups]:
    """While `tape` records inside, what is looked up in these tables is kept apart from them."""
    lookups = Lookups(tables, tape)
    token = _recording.set(lookups)
    try:
        yield lookups
    finally:
        _recording.reset(token)


def look_up(table_VD: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Rows of a table. Its gradient by itself is dense: IndexedSlices would be concatenated with a tied output's gradient, and
    sent between replicas by an all-gather that grows with their number. It is summed in float32: in bfloat16 that of a row that
    is looked up often would stop growing."""
    lookups = _recording.get()
    if lookups is not None and lookups.has(table_VD):
        return lookups.look_up(table_VD, places)
    return _with_dense_gradient(table_VD, places)


@tf.custom_gradient
def _with_dense_gradient(table_VD: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        upstream_ND = tf.cast(tf.reshape(upstream, (-1, table_VD.shape[1])), tf.float32)
        sums_VD = tf.math.unsorted_segment_sum(upstream_ND, tf.reshape(places, (-1,)), table_VD.shape[0])
        return tf.cast(sums_VD, table_VD.dtype), None

    return tf.gather(table_VD, places), gradient


def _scatter_add_in_place(tensor: tf.Tensor, indices: tf.Tensor, updates: tf.Tensor) -> tf.Tensor:
    """`tf.tensor_scatter_nd_add`, which copies the tensor first; this does not where nothing else needs it. XLA has none."""
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=tensor, indices=indices, updates=updates)
