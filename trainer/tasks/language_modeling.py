"""The task `language_modeling`: predict each next token. Axes as in `models.blocks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.windows import Int64Array, Samples
from trainer.models import gpt
from trainer.models.blocks import DropoutKey, TokenOutput, Weights
from trainer.tasks.losses import evaluate_output, output_loss_sums
from trainer.tasks.task import Features, Outputs, Sums


@dataclass(frozen=True)
class LanguageModeling:
    """Features: `inputs` and `targets` [B, T]; of rows of several documents also `segments` and `positions` [B, T]."""

    config: Config

    def loss_sums(
        self,
        weights: Weights,
        features: Features,
        dropout_key: DropoutKey | None = None,
        loss_scale: tf.Tensor | None = None,
    ) -> Sums:
        smoothing = self.config.train.label_smoothing if dropout_key is not None else 0.0
        output = self._output(weights, features, dropout_key)
        return output_loss_sums(self.config, output, features["targets"], smoothing, loss_scale)

    def num_tokens(self, features: Features) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(features["targets"] >= 0, tf.float32))

    def evaluate(self, weights: Weights, features: Features) -> tuple[Sums, Outputs]:
        sums, _ = evaluate_output(self.config, self._output(weights, features, None), features["targets"])
        return sums, {}

    def metrics(
        self, outputs: Mapping[str, np.ndarray], samples: Sequence[Samples], sample_ids: Int64Array
    ) -> dict[str, float]:
        return {}

    def _output(self, weights: Weights, features: Features, dropout_key: DropoutKey | None) -> TokenOutput:
        model, segments_BT, positions_BT = self.config.model, features.get("segments"), features.get("positions")
        x_BTD = gpt.hidden_states(model, weights, features["inputs"], dropout_key, segments_BT, positions_BT)
        return gpt.token_output(model, weights, x_BTD)
