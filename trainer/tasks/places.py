"""Reads vectors at places of rows, where a task needs those alone.

Axes: B batch, T time, D width, N places of a row.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.models.products import product


def vectors_at(x_BTD: tf.Tensor, places_BN: tf.Tensor) -> tf.Tensor:
    """The vectors at places (int32): [B, N, D].

    As a matrix product: its gradient is one too, which is the same in every run, as a scatter on a GPU is not.
    """
    chosen_BNT = tf.one_hot(places_BN, x_BTD.shape[1], dtype=x_BTD.dtype)
    return product(chosen_BNT, x_BTD)


def counted_places(targets_BT: tf.Tensor, most: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The first `most` places of each row whose targets count, and these targets: int32 [B, most]; -1 fills them up."""
    is_counted_BT = tf.cast(targets_BT >= 0, tf.int32)
    # Of equal ones the first come first.
    _, places_BN = tf.math.top_k(is_counted_BT, most, sorted=True)
    return places_BN, tf.gather(targets_BT, places_BN, batch_dims=1)
