"""The task `masked_language_modeling`: guess the tokens that are hidden (Devlin et al. 2019, arXiv:1810.04805).

Axes as in `models.blocks`; N: the most tokens that a row hides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.masking import num_hidden
from trainer.data.windows import Int64Array, Samples
from trainer.models import bert
from trainer.models.blocks import DropoutKey, TokenOutput, Weights
from trainer.tasks.losses import evaluate_output, num_right, output_loss_sums, share_right
from trainer.tasks.places import counted_places, vectors_at
from trainer.tasks.task import Features, Outputs, Sums


@dataclass(frozen=True)
class MaskedLanguageModeling:
    """Features: `inputs`, `targets` and `segments` [B, T]; of rows of several documents also `positions` [B, T]."""

    config: Config

    def loss_sums(
        self,
        weights: Weights,
        features: Features,
        dropout_key: DropoutKey | None = None,
        loss_scale: tf.Tensor | None = None,
    ) -> Sums:
        smoothing = self.config.train.label_smoothing if dropout_key is not None else 0.0
        output, targets_BN = self._output(weights, features, dropout_key)
        return output_loss_sums(self.config, output, targets_BN, smoothing, loss_scale)

    def num_tokens(self, features: Features) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(features["segments"] > 0, tf.float32))

    def evaluate(self, weights: Weights, features: Features) -> tuple[Sums, Outputs]:
        """Outputs: how many tokens of a row were guessed, and of how many, `right` and `all` int32 [B]."""
        output, targets_BN = self._output(weights, features, None)
        sums, likeliest_BN = evaluate_output(self.config, output, targets_BN)
        return sums, num_right(likeliest_BN, targets_BN)

    def metrics(
        self, outputs: Mapping[str, np.ndarray], samples: Sequence[Samples], sample_ids: Int64Array
    ) -> dict[str, float]:
        return {"accuracy": share_right(outputs)}

    def _output(self, weights: Weights, features: Features, dropout_key: DropoutKey | None) -> tuple[TokenOutput, tf.Tensor]:
        """What the logits [B, N, V] are made of, and targets [B, N], of the hidden tokens alone: scores of all would cost
        several times as much."""
        model = self.config.model
        x_BTD = bert.hidden_states(
            model, weights, features["inputs"], features["segments"], None, features.get("positions"), dropout_key
        )
        most = num_hidden(self.config.data.masking.rate, self.config.data.sequence_length)
        places_BN, targets_BN = counted_places(features["targets"], most)
        return bert.token_output(model, weights, vectors_at(x_BTD, places_BN)), targets_BN
