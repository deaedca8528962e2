"""Blocks that keep their input alone and are computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.models.blocks import DropoutKey, Weights

Tensors = Sequence[tf.Tensor]
Computation = Callable[[Weights, Tensors, Tensors, DropoutKey], tf.Tensor]  # (weights, inputs, around, dropout key) -> output


def recomputed(compute: Computation) -> Computation:
    """`compute`, of which nothing is kept for the backward pass but what it was called with."""

    def call(weights: Weights, inputs: Tensors, around: Tensors, dropout_key: DropoutKey) -> tf.Tensor:
        names, num_inputs, num_given = list(weights), len(inputs), len(inputs) + len(around)

        def compute_after(zero: tf.Tensor, tensors: Tensors) -> tf.Tensor:
            key = DropoutKey(dropout_key.seed, dropout_key.first_row + tf.cast(zero, tf.int64))
            own = dict(zip(names, tensors[num_given:], strict=True))
            return compute(own, tensors[:num_inputs], tensors[num_inputs:num_given], key)

        @tf.custom_gradient
        def with_gradient(*tensors: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor | None]]]:
            def gradient(upstream: tf.Tensor) -> list[tf.Tensor | None]:
                # Nothing may merge this with the first computation, nor begin it before its turn. XLA knows no control
                # dependencies, and on CPUs drops its optimization barriers before it orders the operations: so all that is
                # computed again begins with a sum that only the upstream gradient completes. It adds zero.
                zero = _zero_after(upstream)
                again = [*(each + tf.cast(zero, each.dtype) for each in tensors[:num_inputs]), *tensors[num_inputs:]]
                watched = [each for each in again if each.dtype.is_floating]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(watched)
                    result = compute_after(zero, again)
                found = iter(tape.gradient(result, watched, output_gradients=upstream))
                gradients = [next(found) if each.dtype.is_floating else None for each in again]
                by_inputs, others = gradients[:num_inputs], gradients[num_inputs:]
                # Nobody waits for the gradients by weights. Were they put off, what they are made of would stay.
                with tf.control_dependencies([each for each in others if each is not None]):
                    return [*(None if each is None else tf.identity(each) for each in by_inputs), *others]

            # Dropout's random numbers depend on the key alone: those of all blocks would be there before the first one runs.
            return compute_after(_zero_after(tensors[0]), tensors), gradient

        return with_gradient(*inputs, *around, *(weights[each] for each in names))

    return call


def _zero_after(tensor: tf.Tensor) -> tf.Tensor:
    """Zero, float32, known once the tensor is; not a number where the tensor's first is none."""
    first = tf.cast(tf.reshape(tensor, (-1,))[0], tf.float32)
    return tf.minimum(tf.abs(first), 0.0)
