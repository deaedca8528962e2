"""`model.recompute: blocks`: the same numbers, computed again in the backward pass, by either compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_models_families import (
    ALL,
    GPT,
    LENGTH,
    TARGET_LENGTH,
    VOCABULARY_SIZE,
    compute,
    each_model,
    is_real,
    rows,
)
from trainer.config import ModelConfig
from trainer.models.apart import compiled_apart
from trainer.models.blocks import DropoutKey
from trainer.models.parameters import parameters
from trainer.step import Compiler

pytestmark = pytest.mark.usefixtures("tensorflow")

Differentiation = Callable[[dict[str, tf.Tensor], tf.Tensor], tuple[tf.Tensor, dict[str, tf.Tensor]]]


def begun_weights(model: ModelConfig) -> dict[str, tf.Tensor]:
    """Weights of the size that they begin with, where rounding grows least on its way; no gain is 1 and no bias 0."""
    generator = np.random.default_rng(0)
    return {
        name: tf.constant(
            generator.normal(float(weight.initializer == "ones"), weight.standard_deviation or 0.1, weight.shape), tf.float32
        )
        for name, weight in parameters(model, VOCABULARY_SIZE, LENGTH, TARGET_LENGTH).items()
    }


def differentiation(model: ModelConfig, recompute: str, *, compiler: Compiler) -> Differentiation:
    """A compiled function (weights, first row) that gives a loss of what the model computes, and its gradients."""
    model, features = model.model_copy(update={"recompute": recompute, "dropout": 0.2}), rows()
    counted = tf.constant(is_real(model, features)[..., None], tf.float32)

    @tf.function(jit_compile=compiler == "xla", autograph=False)
    def differentiate(weights: dict[str, tf.Tensor], first_row: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        with compiled_apart(compiler == "elementwise"), tf.GradientTape() as tape:
            tape.watch(weights)
            found = compute(model, weights, features, DropoutKey(tf.constant([3, 4], tf.int64), first_row))
            loss = tf.reduce_sum(tf.square(found) * counted)
        return loss, tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return differentiate


def assert_same(model: ModelConfig, *, compiler: Compiler) -> None:
    weights, first_row = begun_weights(model), tf.constant(6, tf.int64)
    kept, again = (differentiation(model, recompute, compiler=compiler)(weights, first_row) for recompute in ("none", "blocks"))
    assert again[0].numpy() == pytest.approx(kept[0].numpy(), rel=1e-6)
    for name, expected in kept[1].items():
        norm = np.linalg.norm(expected)
        assert norm > 0.0 or name in ("output", "type_embedding", "masked.bias")
        assert np.linalg.norm(again[1][name] - expected) <= 3e-6 * norm, name


@each_model
def test_gradients_are_those_of_what_is_kept(model: ModelConfig) -> None:
    assert_same(model, compiler="graph")


@pytest.mark.parametrize("compiler", ["xla", "elementwise"])
@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_gradients_are_those_of_what_is_kept_compiled_by_xla(name: str, compiler: Compiler) -> None:
    assert_same(ALL[name], compiler=compiler)


def products(graph: str) -> int:
    """Matrix products in a graph that XLA or TensorFlow has optimized, as text."""
    return sum(" dot(" in line for line in graph.splitlines())


def optimized(recompute: str) -> int:
    """How many matrix products TensorFlow's graph has when it is about to run."""
    from tensorflow.python.eager import context

    differentiate = differentiation(GPT, recompute, compiler="graph")
    context.enable_run_metadata()
    try:
        differentiate(begun_weights(GPT), tf.constant(0, tf.int64))
        graphs = context.export_run_metadata().function_graphs
    finally:
        context.disable_run_metadata()
    counts = [sum("MatMul" in node.op for node in graph.post_optimization_graph.node) for graph in graphs]
    return max(counts)


def test_each_product_but_the_last_of_a_block_is_computed_twice_by_xla() -> None:
    given: tuple[Any, ...] = (begun_weights(GPT), tf.constant(0, tf.int64))
    none, blocks = (
        products(differentiation(GPT, recompute, compiler="xla").experimental_get_compiler_ir(*given)(stage="optimized_hlo"))
        for recompute in ("none", "blocks")
    )
    # Queries with keys and values, scores, their mixture, the attention's output, and into the activation function.
    assert blocks - none == 5 * GPT.num_layers


def test_each_product_but_the_last_of_a_block_is_computed_twice_by_the_graph() -> None:
    assert optimized("blocks") - optimized("none") == 5 * GPT.num_layers


def test_without_a_key_nothing_is_to_be_computed_again() -> None:
    """What is evaluated or exported has a graph without custom gradients."""
    model = GPT.model_copy(update={"recompute": "blocks"})
    weights, features = begun_weights(model), rows()
    graphs = []
    for each in (GPT, model):
        traced = tf.function(lambda weights, each=each: compute(each, weights, features), autograph=False)
        graphs.append([operation.type for operation in traced.get_concrete_function(weights).graph.get_operations()])
    assert graphs[0] == graphs[1]


def test_a_bag_of_embeddings_has_no_blocks() -> None:
    with pytest.raises(ValueError, match="nothing: a bag of embeddings has a `width` alone"):
        ModelConfig(family="bag_of_embeddings", width=8, recompute="blocks")


def test_all_families_with_attention_are_here() -> None:
    assert {model.family for model in ALL.values()} == {"gpt", "bert", "t5", "encoder_decoder"}
