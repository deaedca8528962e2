"""The update of weights whose optimizer state is sharded over ranks (ZeRO stage 1; Rajbhandari et al. 2020, arXiv:1910.02054).

Gradients are reduce-scattered: each rank gets the sum of its piece of every weight's (`optimizers.shards`). It updates that
piece with its piece of the optimizer's state, and all pieces are all-gathered into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.config import Config
from trainer.distribution import Distribution
from trainer.optimizers.average import kept_of_average, move_average
from trainer.optimizers.choice import update_weight
from trainer.optimizers.scalars import update_scalars
from trainer.optimizers.shards import Share
from trainer.training_state import TrainingState

# (gradients' pieces, factor, rate, step, whether the update is made)
Update = Callable[[Sequence[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], None]


def padded(share: Share, tensor: tf.Tensor) -> tf.Tensor:
    """The numbers in row-major order, with zeros after them so that they can be cut into equal pieces."""
    flat = tf.reshape(tensor, [-1])
    padding = share.padding(tensor.shape.num_elements())
    return tf.pad(flat, [[0, padding]]) if padding else flat


def piece(share: Share, tensor: tf.Tensor) -> tf.Tensor:
    """The rank's piece of a tensor that it has whole."""
    begin, end = share.bounds(tensor.shape.num_elements())
    return padded(share, tensor)[begin:end]


def joined(numbers: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """The tensor of which `numbers` are the pieces of all ranks, one after another."""
    return tf.reshape(numbers[: tf.TensorShape(shape).num_elements()], shape)


def reduce_scatter(
    config: Config, distribution: Distribution, share: Share, sums: Sequence[tf.Tensor], wire_scale: float
) -> tuple[list[tf.Tensor], tf.Tensor, list[tf.Tensor]]:
    """Of a replica's [*gradients, loss sum, number of losses, number of tokens]: the rank's pieces of the gradients' sums over
    all replicas, the norm of the whole gradient, and the sums of the three counts."""
    gradients, counts = [padded(share, each) for each in sums[:-3]], sums[-3:]
    if config.distribution.wire_precision == "float16":
        narrow = [tf.cast(gradient * wire_scale, tf.float16) for gradient in gradients]
        pieces = [tf.cast(each, tf.float32) / wire_scale for each in distribution.reduce_scatter(narrow)]
    else:
        pieces = distribution.reduce_scatter(gradients)
    squares = tf.square(tf.linalg.global_norm(pieces))
    # A sum over all ranks: they agree on the norm, and so on whether the update is made.
    total, *counted = distribution.all_reduce([squares, *counts])
    return pieces, tf.sqrt(total), counted


def sharded_update(config: Config, state: TrainingState, distribution: Distribution, trained: Sequence[str]) -> Update:
    """The change of all trained weights. A piece of a weight is in a variable only while it is updated."""
    share = state.share
    assert share is not None
    held = [tf.Variable(tf.zeros([0]), shape=[None]) for _ in trained]

    def update(gradients: Sequence[tf.Tensor], factor: tf.Tensor, rate: tf.Tensor, step: tf.Tensor, only_if: tf.Tensor) -> None:
        before = [piece(share, tf.convert_to_tensor(state.weights[name])) for name in trained]

        scalars = update_scalars(config.optimizer, rate, step)

        def change() -> list[tf.Tensor]:
            changed = []
            for name, weight, value, gradient in zip(trained, held, before, gradients, strict=True):
                weight.assign(value)
                slots, _ = state.beside(name)
                update_weight(config.optimizer, state.parameters[name], weight, slots, gradient * factor, scalars)
                changed.append(tf.ensure_shape(weight.read_value(), value.shape))
                weight.assign(tf.zeros([0]))
            return changed

        pieces = tf.cond(only_if, change, lambda: [tf.identity(value) for value in before])
        # Outside the condition: all ranks gather, whether there was an update or not.
        for name, numbers in zip(trained, distribution.all_gather(pieces), strict=True):
            state.weights[name].assign(joined(numbers, state.parameters[name].shape))
        decay = config.train.average_decay
        if decay is not None:
            kept = kept_of_average(decay, step)
            moves = [(average, state.weights[name], kept) for name, average in state.averages.items()]
            distribution.update(move_average, moves, only_if=only_if)

    return update
