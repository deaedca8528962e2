"""Chains that XLA compiles by themselves compute what they compute as plain operations, and so do their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.models import elementwise
from trainer.models.apart import compiled_apart
from trainer.models.vectorized import rounded_to_bfloat16

pytestmark = pytest.mark.usefixtures("tensorflow")

RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


LABELS = np.array([0, 10, 3, 3, 7], np.int32)


CHAINS: dict[str, tuple[Callable[..., tf.Tensor], tuple[Any, ...]]] = {
    "layer_norm": (elementwise.normalize, (numbers(6, 16), numbers(16), numbers(16), True, 1e-5)),
    "layer_norm of many rows": (elementwise.normalize, (numbers(3, 64, 16), numbers(16), numbers(16), True, 1e-5)),
    "rms_norm": (elementwise.normalize, (numbers(6, 16), numbers(16), None, False, 1e-5)),
    "gelu": (elementwise.gelu, (numbers(6, 16), True)),
    "gelu_erf": (elementwise.gelu, (numbers(6, 16), False)),
    "gated_gelu": (elementwise.gated_gelu, (numbers(6, 16), numbers(6, 16))),
    "gated_silu": (elementwise.gated_silu, (numbers(6, 16), numbers(6, 16))),
    "softmax": (elementwise.masked_softmax, (numbers(2, 3, 4, 4), numbers(4, 4), 0.5)),
    "softmax of rows that differ": (elementwise.masked_softmax, (numbers(2, 3, 4, 4), numbers(2, 1, 4, 4), 0.5)),
    "softmax with a bias of heads": (elementwise.masked_softmax, (numbers(2, 3, 4, 4), numbers(3, 4, 4), 1.0)),
    "cross_entropy": (elementwise.cross_entropy, (numbers(5, 11), LABELS)),
    "smoothed cross_entropy": (elementwise.cross_entropy, (numbers(5, 11), LABELS, 0.1)),
}


def with_gradients(chain: Callable[..., tf.Tensor], arguments: tuple[Any, ...], *, apart: bool) -> list[np.ndarray]:
    """What the chain computes, and the gradients of a sum of it, each element with a weight of its own."""
    arguments = tuple(tf.constant(each) if isinstance(each, np.ndarray) else each for each in arguments)
    floats = [each for each in arguments if isinstance(each, tf.Tensor) and each.dtype.is_floating]

    @tf.function(autograph=False)
    def compute() -> list[tf.Tensor]:
        with compiled_apart(apart), tf.GradientTape() as tape:
            tape.watch(floats)
            result = chain(*arguments)
            total = tf.reduce_sum(
                tf.cast(result, tf.float32) * tf.reshape(tf.range(tf.size(result), dtype=tf.float32), result.shape)
            )
        return [tf.cast(each, tf.float32) for each in (result, *tape.gradient(total, floats))]

    return [each.numpy() for each in compute()]


@pytest.mark.parametrize("name", CHAINS)
def test_compiled_apart_a_chain_and_its_gradients_are_the_plain_ones(name: str) -> None:
    chain, arguments = CHAINS[name]
    plain, apart = (with_gradients(chain, arguments, apart=apart) for apart in (False, True))
    for one, other in zip(plain, apart, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-5 * np.abs(one).max())


@pytest.mark.parametrize("is_centred", [True, False])
@pytest.mark.parametrize("apart", [False, True])
def test_the_gradients_of_a_normalization_are_those_of_its_definition(apart: bool, is_centred: bool) -> None:
    x, gain, bias = (tf.constant(numbers(*shape), tf.float64) for shape in ((40, 16), (16,), (16,)))
    with tf.GradientTape() as tape:
        tape.watch([x, gain, bias])
        centred = x - tf.reduce_mean(x, -1, keepdims=True) if is_centred else x
        y = centred / tf.sqrt(tf.reduce_mean(centred**2, -1, keepdims=True) + 1e-5) * gain + bias
        total = tf.reduce_sum(y * tf.reshape(tf.range(640, dtype=tf.float64), (40, 16)))
    expected = (y, *tape.gradient(total, [x, gain, bias]))
    narrow = tuple(tf.cast(each, tf.float32) for each in (x, gain, bias))
    found = with_gradients(elementwise.normalize, (*narrow, is_centred, 1e-5), apart=apart)
    for number, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(number, exact, rtol=2e-5, atol=2e-5 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["layer_norm", "layer_norm of many rows", "gelu", "gated_silu", "softmax", "cross_entropy"])
def test_in_bfloat16_only_what_goes_in_and_out_is_rounded(name: str) -> None:
    chain, arguments = CHAINS[name]
    keep = 1 if name == "softmax" else None  # the mask stays float32
    narrow = tuple(
        tf.cast(each, tf.bfloat16) if isinstance(each, np.ndarray) and each is not LABELS and place != keep else each
        for place, each in enumerate(arguments)
    )
    wide = tuple(tf.cast(each, tf.float32) if tf.is_tensor(each) else each for each in narrow)
    found = with_gradients(chain, narrow, apart=True)[0]
    exact = with_gradients(chain, wide, apart=False)[0]
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-6)


def test_rounding_to_bfloat16_by_bits_is_tensorflows() -> None:
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = tf.bitcast(tf.constant(upper | lower), tf.float32)
    expected = tf.cast(x, tf.bfloat16)
    is_nan = np.isnan(x.numpy())
    for rounded in (rounded_to_bfloat16(x), tf.function(rounded_to_bfloat16, jit_compile=True)(x)):
        np.testing.assert_array_equal(np.isnan(tf.cast(rounded, tf.float32)), is_nan)
        bits, expected_bits = (tf.bitcast(each, tf.uint16).numpy()[~is_nan] for each in (rounded, expected))
        np.testing.assert_array_equal(bits, expected_bits)


@pytest.mark.parametrize("apart", [False, True])
def test_the_gradient_of_a_bias_is_summed_in_float32(apart: bool) -> None:
    x = tf.cast(numbers(2048, 24), tf.bfloat16)
    _, by_x, by_bias = with_gradients(elementwise.add_bias, (x, tf.zeros(24, tf.bfloat16)), apart=apart)
    exact = by_x.astype(np.float64).sum(0)
    np.testing.assert_allclose(by_bias, exact, rtol=2**-8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("apart", [False, True])
def test_the_gradient_that_comes_with_the_loss_is_the_loss_s(apart: bool, smoothing: float) -> None:
    logits, labels, weights = tf.constant(numbers(5, 11)), tf.constant(LABELS), tf.constant(numbers(5))

    @tf.function(autograph=False)
    def compute() -> tuple[tf.Tensor, ...]:
        with compiled_apart(apart):
            losses, gradient = elementwise.cross_entropy_with_gradient(logits, labels, smoothing, weights)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            plain = elementwise.cross_entropy(logits, labels, smoothing)
            total = tf.reduce_sum(plain * weights)
        return losses, plain, gradient, tape.gradient(total, logits)

    losses, plain, gradient, expected = compute()
    np.testing.assert_allclose(losses, plain, rtol=2e-5)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("apart", [False, True])
def test_logits_after_those_of_the_classes_count_for_nothing(apart: bool, smoothing: float) -> None:
    logits, weights = numbers(5, 11), tf.constant(numbers(5))
    wide = tf.constant(np.concatenate([logits, 30.0 + numbers(5, 3)], 1))

    @tf.function(autograph=False)
    def compute(logits: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with compiled_apart(apart), tf.GradientTape() as tape:
            tape.watch(logits)
            plain = elementwise.cross_entropy(logits, tf.constant(LABELS), smoothing, 11)
            losses, gradient = elementwise.cross_entropy_with_gradient(logits, tf.constant(LABELS), smoothing, weights, 11)
            total = tf.reduce_sum(plain * weights)
        return plain, losses, gradient, tape.gradient(total, logits)

    for found, expected in zip(compute(wide), compute(tf.constant(logits)), strict=True):
        if len(found.shape) == 2:
            assert not found.numpy()[:, 11:].any()
            found = found[:, :11]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_apart_each_chain_is_compiled_by_xla_and_elsewhere_none_is() -> None:
    def compiled(apart: bool) -> int:
        @tf.function(autograph=False)
        def forward(x: tf.Tensor) -> tf.Tensor:
            with compiled_apart(apart):
                return elementwise.gelu(elementwise.normalize(x, tf.ones(16), tf.zeros(16), True, 1e-5), True)

        definition = forward.get_concrete_function(numbers(6, 16)).graph.as_graph_def()
        return sum(function.attr["_XlaMustCompile"].b for function in definition.library.function)

    assert compiled(apart=True) == 2
    assert compiled(apart=False) == 0


def test_layers_of_one_shape_share_one_trace() -> None:
    traces: list[tuple[int, ...]] = []

    @elementwise.chain
    def counted(x: tf.Tensor) -> tf.Tensor:
        traces.append(tuple(x.shape))
        return x * 2.0

    @tf.function(autograph=False)
    def layers(x: tf.Tensor) -> tf.Tensor:
        for _ in range(4):
            x = counted(x)
        return x

    with compiled_apart():
        layers(numbers(3, 5))
    assert traces == [(3, 5)]
