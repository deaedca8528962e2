"""Rounding and sums in forms of which XLA makes wide vector instructions on a CPU, where it compiles them `apart`. Elsewhere
they are the customary ones.

Axes: N rows, C columns.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.models.apart import is_apart
from trainer.models.products import has_instructions


def widened(x: tf.Tensor) -> tf.Tensor:
    """`x` as float32, whose gradient is `narrowed`."""
    if not _is_rounded_by_bits(x.dtype):
        return tf.cast(x, tf.float32)
    return tf.custom_gradient(lambda x: (tf.cast(x, tf.float32), rounded_to_bfloat16))(x)


def narrowed(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """`x`, float32, as `dtype`, whose gradient is float32 again."""
    if not _is_rounded_by_bits(dtype):
        return tf.cast(x, dtype)
    return tf.custom_gradient(lambda x: (rounded_to_bfloat16(x), lambda upstream: tf.cast(upstream, tf.float32)))(x)


def _is_rounded_by_bits(dtype: tf.DType) -> bool:
    """Where the CPU has an instruction for it, XLA's conversion to bfloat16 halves the width of all vectors of the loop that
    it stands in, and takes as long as a GELU; elsewhere it is the faster way."""
    return dtype == tf.bfloat16 and is_apart() and has_instructions(dtype)


def rounded_to_bfloat16(x: tf.Tensor) -> tf.Tensor:
    """What `tf.cast` makes of float32, by arithmetic of its bits: to the nearest, of two as near to the even one."""
    bits = tf.bitcast(x, tf.uint32)
    is_odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, np.uint32(16)), np.uint32(1))
    rounded = tf.bitwise.right_shift(bits + np.uint32(0x7FFF) + is_odd, np.uint32(16))
    rounded = tf.where(tf.math.is_nan(x), np.uint32(0x7FC0), rounded)  # adding might carry a NaN's bits away
    return tf.bitcast(tf.cast(rounded, tf.uint16), tf.bfloat16)


def row_sums(x: tf.Tensor) -> tf.Tensor:
    """Over the last axis, which stays, of length 1. XLA adds the numbers of a row one after another, but not those of a
    product: one with ones takes a fifth of the time."""
    if not is_apart():
        return tf.reduce_sum(x, -1, keepdims=True)
    sums_N1 = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), tf.ones((x.shape[-1], 1)))
    return tf.reshape(sums_N1, tf.concat([tf.shape(x)[:-1], [1]], 0))


def row_means(x: tf.Tensor) -> tf.Tensor:
    return row_sums(x) / x.shape[-1]


def column_sums(x: tf.Tensor) -> tf.Tensor:
    """Over all axes but the last, in float32. XLA adds the numbers of a column one after another, but stretches of rows to one
    another for many columns at once."""
    x_NC = tf.reshape(x, (-1, x.shape[-1]))
    if is_apart() and x_NC.shape[0]:
        at_most = 16 if x.dtype == tf.float32 else 8  # more it would widen in a loop of its own
        while len(parts := stretches(x_NC, at_most, axis=0)) > 1:
            x_NC, at_most = tf.add_n([tf.cast(part, tf.float32) for part in parts]), 16
    return tf.reduce_sum(tf.cast(x_NC, tf.float32), 0)


def stretches(x: tf.Tensor, at_most: int, axis: int) -> list[tf.Tensor]:
    """`x` in parts of one length, as many as there can be."""
    length = x.shape[axis]
    return tf.split(x, max(number for number in range(1, at_most + 1) if length % number == 0), axis)
