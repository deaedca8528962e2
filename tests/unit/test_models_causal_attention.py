"""Attention by blocks of queries computes what attention to all keys under a causal mask computes, and so do its gradients.

Axes as in `models.blocks`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models.apart import compiled_apart
from trainer.models.attention import attend
from trainer.models.blocks import DropoutKey, causal_mask, segment_mask
from trainer.models.parameters import query_blocks
from trainer.step import Compiler

pytestmark = pytest.mark.usefixtures("tensorflow")

BATCH, HEADS, WIDTH = 2, 4, 8
EACH = ModelConfig(num_layers=1, num_heads=HEADS, width=HEADS * WIDTH)
SHARED = EACH.model_copy(update={"num_key_value_heads": 2})
DROPPING = SHARED.model_copy(update={"dropout": 0.3})


def computed(
    model: ModelConfig, time: int, *, is_causal: bool, compiler: Compiler = "graph", dtype: str = "float32", texts: int = 1
) -> list[np.ndarray]:
    """What attention gives, and the gradients of queries, keys and values of a sum of it, where each number has its weight."""
    random = np.random.default_rng(0)
    pairs = model.key_value_heads
    given = [tf.cast(random.normal(size=(BATCH, heads, time, WIDTH)), dtype) for heads in (HEADS, pairs, pairs)]
    weights = tf.cast(random.normal(size=(BATCH, time, HEADS * WIDTH)), dtype)
    segments = tf.constant(np.sort(random.integers(1, texts + 1, (BATCH, time)), axis=1), tf.int32)
    key = DropoutKey(tf.constant([3, 4], tf.int64), tf.constant(5, tf.int64))

    @tf.function(jit_compile=compiler == "xla", autograph=False)
    def compute() -> list[tf.Tensor]:
        mask = causal_mask(time) if texts == 1 else causal_mask(time) + segment_mask(segments, segments)
        with compiled_apart(compiler == "elementwise"), tf.GradientTape() as tape:
            tape.watch(given)
            mixed = attend(model, *given, mask, key, site=2, is_causal=is_causal)
            total = tf.reduce_sum(mixed * weights)
        return [tf.cast(each, tf.float32) for each in (mixed, *tape.gradient(total, given))]

    return [each.numpy() for each in compute()]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 2e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("model", [EACH, SHARED, DROPPING], ids=["a head each", "shared heads", "dropout"])
@pytest.mark.parametrize("time", [65, 150, 300])
def test_blocks_compute_what_one_product_does(model: ModelConfig, time: int, texts: int) -> None:
    expected = computed(model, time, is_causal=False, texts=texts)
    assert_same(computed(model, time, is_causal=True, texts=texts), expected)


@pytest.mark.parametrize("compiler", ["xla", "elementwise"])
def test_the_compilers_agree_on_it(compiler: Compiler) -> None:
    expected = computed(DROPPING, 150, is_causal=False)
    assert_same(computed(DROPPING, 150, is_causal=True, compiler=compiler), expected, 1e-5)


def test_in_bfloat16_blocks_are_about_as_far_from_float32_as_one_product() -> None:
    exact = computed(SHARED, 150, is_causal=False)
    whole, blocks = (computed(SHARED, 150, is_causal=is_causal, dtype="bfloat16") for is_causal in (False, True))
    for one, other, expected in zip(blocks, whole, exact, strict=True):
        assert np.linalg.norm(one - expected) <= 1.2 * np.linalg.norm(other - expected)


def test_outside_training_there_is_no_custom_gradient() -> None:
    @tf.function(autograph=False)
    def read(query: tf.Tensor) -> tf.Tensor:
        return attend(EACH, query, query, query, causal_mask(150), is_causal=True)

    graph = read.get_concrete_function(tf.TensorSpec((None, HEADS, 150, WIDTH))).graph.as_graph_def()
    assert not [node.name for node in graph.node if "_gradient_op_type" in node.attr]
    assert sum("MatMul" in node.op for node in graph.node) == 2 * len(query_blocks(EACH, 150))


@pytest.mark.parametrize("length", [1, 64, 65, 150, 256, 1000, 1024])
def test_blocks_are_the_whole_sequence_in_order(length: int) -> None:
    blocks = query_blocks(EACH, length)
    assert blocks[0][0] == 0 and blocks[-1][1] == length
    assert all(one[1] == other[0] for one, other in pairwise(blocks))
    assert len(blocks) <= 4 and all(end - begin >= 64 for begin, end in blocks[:-1])
