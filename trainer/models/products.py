"""Matrix products, of a narrow precision also where the CPU has no instructions for it."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from trainer.models.instructions import cpu_multiplies


def product(a: tf.Tensor, b: tf.Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> tf.Tensor:
    """a @ b over the last two axes, of which those in front are the same.

    A CPU without instructions for a narrow precision would emulate them, at a fourth of float32's speed. There both sides are
    widened for the product, and the result rounded: that is what a narrow product is, as it adds up in float32, too. What is
    kept for the gradients stays narrow.
    """
    if has_instructions(a.dtype):
        return tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)

    @tf.custom_gradient
    def differentiable(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            wide = tf.cast(upstream, tf.float32)
            by_a = _wide(b, wide, transpose_b, True) if transpose_a else _wide(wide, b, False, not transpose_b)
            by_b = _wide(wide, a, True, transpose_a) if transpose_b else _wide(a, wide, not transpose_a, False)
            return tf.cast(by_a, a.dtype), tf.cast(by_b, b.dtype)

        return tf.cast(_wide(a, b, transpose_a, transpose_b), a.dtype), gradient

    return differentiable(a, b)


def _wide(a: tf.Tensor, b: tf.Tensor, transpose_a: bool, transpose_b: bool) -> tf.Tensor:
    return tf.matmul(tf.cast(a, tf.float32), tf.cast(b, tf.float32), transpose_a=transpose_a, transpose_b=transpose_b)


def has_instructions(dtype: tf.DType) -> bool:
    """Whether the devices that compute have instructions for this precision, beyond loading and storing it."""
    return bool(tf.config.get_visible_devices("GPU")) or cpu_multiplies(dtype.name)
