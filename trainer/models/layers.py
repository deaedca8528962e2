"""Runs the blocks of a model, one for each layer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models.apart import compiled_apart, is_apart
from trainer.models.blocks import DropoutKey, Site, Weights
from trainer.models.recompute import Tensors, recomputed

Block = Callable[..., tf.Tensor]  # (model, weights, name, *inputs, *around, dropout key, site) -> output


def run_block(
    model: ModelConfig,
    block: Block,
    weights: Weights,
    name: str,
    inputs: Tensors,
    around: Tensors,
    dropout_key: DropoutKey | None,
    site: int,
) -> tf.Tensor:
    """`block(model, weights, name, *inputs, *around, dropout_key, site)`, which uses those of the weights alone whose names
    begin with `name`.

    `inputs` are activations; `around` is the same for many blocks (masks, positions). In training, which has a key, and with
    `model.recompute: blocks` nothing of it is kept for the backward pass but what it was called with. Within `compiled_apart`
    Python traces the block and its gradient once for all layers; elsewhere not, since XLA compiles a step with such calls in
    it again at every step.
    """
    if dropout_key is None:
        return block(model, weights, name, *inputs, *around, None, site)
    own = {each.removeprefix(name): weight for each, weight in weights.items() if each.startswith(f"{name}.")}
    if is_apart():
        key = (dropout_key.seed, dropout_key.first_row)
        return _traced(model, block)(own, tuple(inputs), tuple(around), key, tf.constant(site, tf.int64))
    return _compute(model, block, own, inputs, around, dropout_key, site)


@functools.lru_cache(maxsize=64)
def _traced(model: ModelConfig, block: Block) -> Callable[..., tf.Tensor]:
    @tf.function(autograph=False)
    def layer(
        own: Weights,
        inputs: tuple[tf.Tensor, ...],
        around: tuple[tf.Tensor, ...],
        key: tuple[tf.Tensor, tf.Tensor],
        site: tf.Tensor,
    ) -> tf.Tensor:
        return _compute(model, block, own, inputs, around, DropoutKey(*key), site)

    return layer


def _compute(
    model: ModelConfig, block: Block, own: Weights, inputs: Tensors, around: Tensors, dropout_key: DropoutKey, site: Site
) -> tf.Tensor:
    """`own` are the block's weights by what follows its name in theirs."""
    apart = is_apart()

    def compute(own: Weights, inputs: Tensors, around: Tensors, dropout_key: DropoutKey) -> tf.Tensor:
        weights = {f"layer{rest}": weight for rest, weight in own.items()}
        with compiled_apart(apart):  # also where it is computed again, in the backward pass
            return block(model, weights, "layer", *inputs, *around, dropout_key, site)

    run = recomputed(compute) if model.recompute == "blocks" else compute
    return run(own, inputs, around, dropout_key)
