"""Products in a narrow precision that the CPU has no instructions for: the same numbers, by way of float32."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.models import instructions
from trainer.models.products import has_instructions, product

pytestmark = pytest.mark.usefixtures("tensorflow")

NARROW = pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16], ids=["bfloat16", "float16"])
TRANSPOSED = pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
RANDOM = np.random.default_rng(0)


def factors(dtype: tf.DType, transposed: tuple[bool, bool], *front: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Two sides of a product of 5 rows and 7 columns, and an upstream gradient: integers, of which float32 adds up products
    exactly and in any order, and the narrow precisions do not."""
    shapes = ((40, 5) if transposed[0] else (5, 40)), ((7, 40) if transposed[1] else (40, 7)), (5, 7)
    a, b, upstream = (tf.constant(RANDOM.integers(-63, 64, (*front, *shape)), dtype) for shape in shapes)
    return a, b, upstream


def with_gradients(a: tf.Tensor, b: tf.Tensor, upstream: tf.Tensor, transposed: tuple[bool, bool]) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        result = product(a, b, transpose_a=transposed[0], transpose_b=transposed[1])
    return [result, *tape.gradient(result, [a, b], upstream)]


@NARROW
@TRANSPOSED
@pytest.mark.parametrize("front", [(), (2, 3)], ids=["matrices", "batch"])
def test_a_product_and_its_gradients_are_those_of_float32_rounded(
    dtype: tf.DType, transposed: tuple[bool, bool], front: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = factors(dtype, transposed, *front)
    expected = with_gradients(*(tf.cast(each, tf.float32) for each in narrow), transposed)
    monkeypatch.setattr(instructions, "cpu_flags", lambda: frozenset({"avx2"}))
    found = with_gradients(*narrow, transposed)
    for wide, rounded in zip(expected, found, strict=True):
        assert rounded.dtype == dtype
        np.testing.assert_array_equal(rounded, tf.cast(wide, dtype))
        assert not np.array_equal(tf.cast(rounded, tf.float32), wide), "else rounding is not seen"


@pytest.mark.parametrize("transposed", [(False, False), (True, True)])
def test_by_way_of_float32_it_is_what_the_instructions_compute(
    transposed: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = factors(tf.bfloat16, transposed)
    monkeypatch.setattr(instructions, "cpu_flags", lambda: frozenset({"avx512_bf16"}))  # TensorFlow emulates what is not there
    native = with_gradients(*narrow, transposed)
    monkeypatch.setattr(instructions, "cpu_flags", lambda: frozenset({"avx2"}))
    for left, right in zip(native, with_gradients(*narrow, transposed), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("flags", "dtype", "expected"),
    [
        ({"avx2"}, tf.bfloat16, False),
        ({"avx512f", "avx512_vnni"}, tf.bfloat16, False),
        ({"avx512f", "avx512_bf16"}, tf.bfloat16, True),
        ({"avx512f", "avx512_bf16"}, tf.float16, False),
        ({"amx_bf16"}, tf.bfloat16, True),
        ({"asimd", "bf16"}, tf.bfloat16, True),
        ({"avx2"}, tf.float32, True),
        (set(), tf.bfloat16, True),  # a system that does not tell
    ],
)
def test_the_flags_of_the_cpu_decide(flags: set[str], dtype: tf.DType, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "cpu_flags", lambda: frozenset(flags))
    assert has_instructions(dtype) is expected


def test_the_flags_are_read_off_this_machine() -> None:
    assert {"fpu", "sse2"} <= instructions.cpu_flags() or "asimd" in instructions.cpu_flags()
