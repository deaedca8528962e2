"""Matrix products, of a narrow precision also where the CPU has no instructions for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

# What Linux calls the sets of instructions for the narrow precisions that oneDNN multiplies with: of x86, then of Arm.
_INSTRUCTIONS = {tf.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"}, tf.float16: {"avx512_fp16", "amx_fp16", "asimdhp"}}


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
    needed = _INSTRUCTIONS.get(dtype)
    if needed is None or tf.config.get_visible_devices("GPU"):
        return True
    flags = _cpu_flags()
    return not flags or bool(flags & needed)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """What the CPU has, as Linux tells; empty where it does not."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split())
