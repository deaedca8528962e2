"""Blocks that keep their input alone and are computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models.blocks import DropoutKey, Weights


def run_block(
    model: ModelConfig,
    block: Callable[..., tf.Tensor],
    weights: Weights,
    name: str,
    inputs: Sequence[tf.Tensor],
    around: Sequence[tf.Tensor],
    dropout_key: DropoutKey | None,
) -> tf.Tensor:
    """`block(weights, *inputs, *around, dropout_key)`, which uses those of the weights alone whose names begin with `name`.

    In training, which has a key, and with `model.recompute: blocks` nothing of it is kept for the backward pass but what it
    was called with. `inputs` are activations; `around` is the same for many blocks (masks, positions).
    """
    if model.recompute == "none" or dropout_key is None:
        return block(weights, *inputs, *around, dropout_key)
    names = [each for each in weights if each.startswith(f"{name}.")]
    num_given = len(inputs) + len(around)

    def compute(tensors: Sequence[tf.Tensor], zero: tf.Tensor) -> tf.Tensor:
        own = dict(zip(names, tensors[num_given:], strict=True))
        key = DropoutKey(dropout_key.seed, dropout_key.first_row + tf.cast(zero, tf.int64))
        return block(own, *tensors[:num_given], key)

    @tf.custom_gradient
    def recomputed(*tensors: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor | None]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor | None]:
            # Nothing may merge this with the first computation, nor begin it before its turn. XLA knows no control
            # dependencies, and on CPUs drops its optimization barriers before it orders the operations: so all that is
            # computed again begins with a sum that only the upstream gradient completes. It adds zero.
            zero = _zero_after(upstream)
            again = [*(each + tf.cast(zero, each.dtype) for each in tensors[: len(inputs)]), *tensors[len(inputs) :]]
            watched = [each for each in again if each.dtype.is_floating]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                result = compute(again, zero)
            found = iter(tape.gradient(result, watched, output_gradients=upstream))
            return [next(found) if each.dtype.is_floating else None for each in again]

        # Dropout's random numbers depend on the key alone: those of all blocks would be there before the first one runs.
        return compute(tensors, _zero_after(tensors[0])), gradient

    return recomputed(*inputs, *around, *(weights[each] for each in names))


def _zero_after(tensor: tf.Tensor) -> tf.Tensor:
    """Zero, float32, known once the tensor is; not a number where the tensor's first is none."""
    first = tf.cast(tf.reshape(tensor, (-1,))[0], tf.float32)
    return tf.minimum(tf.abs(first), 0.0)
