"""The gradients of private training: of each sample, clipped, summed; and the noise that is added once to the sum of all.

M: rows of a micro-batch on one replica.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from trainer.models.blocks import DropoutKey
from trainer.tasks.task import Features

# Of one sample: (features with a row each, dropout key) -> (gradients, loss sum, how many losses).
Differentiate = Callable[[Features, DropoutKey], tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]]


def clipped_sums(
    differentiate: Differentiate, features: Features, key: DropoutKey, clip_norm: float
) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """The sums over a micro-batch of the samples' gradients, each scaled down to the norm `clip_norm` where it is longer; of
    the losses, and how many these are.

    A sample's gradient is that of the mean of its losses; one that is not finite counts as none. All M are computed at once
    (`tf.vectorized_map`) and held: M times the memory of the trained weights.
    """
    num_rows = next(iter(features.values())).shape[0]

    def one(row: tuple[Features, tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor]:
        sample, number = row
        alone = {name: value[None] for name, value in sample.items()}
        gradients, loss_sum, num_counted = differentiate(alone, DropoutKey(key.seed, key.first_row + number))
        gradients = [gradient / tf.maximum(num_counted, 1.0) for gradient in gradients]
        # Not `tf.linalg.global_norm`, which `tf.vectorized_map` leaves to a loop over the samples.
        squares = tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in gradients])
        return gradients, tf.sqrt(squares), loss_sum, num_counted

    numbers = tf.range(num_rows, dtype=tf.int64)
    gradients, norms_M, losses_M, counts_M = tf.vectorized_map(one, (dict(features), numbers))
    is_finite_M = tf.math.is_finite(norms_M)
    factors_M = tf.where(is_finite_M, tf.minimum(1.0, clip_norm / tf.maximum(norms_M, 1e-12)), 0.0)
    sums = [tf.tensordot(factors_M, _where(is_finite_M, gradient), 1) for gradient in gradients]
    return sums, tf.reduce_sum(losses_M), tf.reduce_sum(counts_M)


@dataclass(frozen=True)
class Noise:
    """What is added to the sums over all replicas: Gaussian noise of this standard deviation in each number, a function of the
    run's secret, the number of the update, and that of the weight: the same on all replicas, so that it is there once."""

    secret: tuple[int, int]
    standard_deviation: float

    def added(self, sums: Sequence[tf.Tensor], update: tf.Tensor) -> list[tf.Tensor]:
        """`update` (int64) counts all that were ever made, also those that were rolled back: no noise is there twice."""
        if self.standard_deviation == 0.0:
            return list(sums)
        of_update = tf.random.experimental.stateless_fold_in(tf.constant(self.secret, tf.int64), update)

        def noise(like: tf.Tensor, number: int) -> tf.Tensor:
            seed = tf.random.experimental.stateless_fold_in(of_update, tf.constant(number, tf.int64))
            return tf.random.stateless_normal(like.shape, seed, stddev=self.standard_deviation, alg="philox")

        return [each + noise(each, number) for number, each in enumerate(sums)]


def _where(is_kept_M: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """Zeros where a sample's gradients [M, ...] are not kept."""
    shape = [-1] + [1] * (len(gradients.shape) - 1)
    return tf.where(tf.reshape(is_kept_M, shape), gradients, tf.zeros_like(gradients))
