"""What a task is to training and evaluation: a loss as sums, and what its metrics are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from trainer.data.windows import Int64Array, Samples
from trainer.models.blocks import DropoutKey, Weights

Features = Mapping[str, tf.Tensor]  # of B samples, by the names that the task's samples give them
Sums = tuple[tf.Tensor, tf.Tensor]  # of the losses, and how many they are of: float32 scalars
Outputs = dict[str, tf.Tensor]  # a row for each sample [B, ...]


class Task(Protocol):
    """A frozen object of the configuration. `loss_sums` and `evaluate` run inside a graph, so they are pure functions."""

    def loss_sums(
        self,
        weights: Weights,
        features: Features,
        dropout_key: DropoutKey | None = None,
        loss_scale: tf.Tensor | None = None,
    ) -> Sums:
        """What training makes small. With a dropout key it is training: what is only done there (dropout, label smoothing,
        computing blocks again) is done then.

        `loss_scale` (float32, float16's alone) is what the caller multiplies the sum by before it is differentiated: a loss
        that computes gradients before it is asked for them does so at that scale. It changes no result.
        """
        ...

    def num_tokens(self, features: Features) -> tf.Tensor:
        """How many tokens are read, without padding: a float32 scalar."""
        ...

    def evaluate(self, weights: Weights, features: Features) -> tuple[Sums, Outputs]:
        """The loss, and what each sample's metrics are computed from once those of all replicas are there."""
        ...

    def metrics(
        self, outputs: Mapping[str, np.ndarray], samples: Sequence[Samples], sample_ids: Int64Array
    ) -> dict[str, float]:
        """By names of `config.METRICS`, beside the loss: what the outputs of a whole evaluation amount to, on the host.

        The rows [N, ...] are those of the samples `sample_ids` [N] of the concatenation of `samples`; each sample is there
        once, padding is not.
        """
        ...
