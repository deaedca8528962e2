"""The tasks `translation` and `summarization`: write one text after another, by an encoder-decoder or a decoder.

Axes as in `models.blocks`; S is the time of the source, T that of what is written or, in a decoder, of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.config import ENCODER_DECODERS, Config
from trainer.data.windows import Int64Array, Samples
from trainer.models import encoder_decoder, gpt
from trainer.models.blocks import DropoutKey, TokenOutput, Weights
from trainer.tasks.losses import evaluate_output, num_right, output_loss_sums, share_right
from trainer.tasks.task import Features, Outputs, Sums


@dataclass(frozen=True)
class TextToText:
    """Features of an encoder-decoder: `source`, `source_segments` [B, S], `inputs`, `targets`, `target_segments` [B, T], and
    where rows are packed `source_positions` and `target_positions`; of a decoder `inputs`, `targets`, `segments` [B, T], and
    `positions`."""

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
        names = [name for name in ("segments", "source_segments", "target_segments") if name in features]
        return tf.add_n([tf.reduce_sum(tf.cast(features[name] > 0, tf.float32)) for name in names])

    def evaluate(self, weights: Weights, features: Features) -> tuple[Sums, Outputs]:
        """Outputs: of a row's targets, how many are the likeliest, and how many there are, `right` and `all` int32 [B]."""
        output, targets_BT = self._output(weights, features, None), features["targets"]
        sums, likeliest_BT = evaluate_output(self.config, output, targets_BT)
        return sums, num_right(likeliest_BT, targets_BT)

    def metrics(
        self, outputs: Mapping[str, np.ndarray], samples: Sequence[Samples], sample_ids: Int64Array
    ) -> dict[str, float]:
        return {"accuracy": share_right(outputs)}

    def _output(self, weights: Weights, features: Features, dropout_key: DropoutKey | None) -> TokenOutput:
        model = self.config.model
        if model.family in ENCODER_DECODERS:
            source_segments_BS = features["source_segments"]
            encoded_BSD = encoder_decoder.encode(
                model, weights, features["source"], source_segments_BS, features.get("source_positions"), dropout_key
            )
            return encoder_decoder.token_output(
                model,
                weights,
                features["inputs"],
                features["target_segments"],
                encoded_BSD,
                source_segments_BS,
                features.get("target_positions"),
                dropout_key,
            )
        # A row of one text needs no mask of segments: what is padding comes after it.
        positions_BT = features.get("positions")
        segments_BT = None if positions_BT is None else features["segments"]
        x_BTD = gpt.hidden_states(model, weights, features["inputs"], dropout_key, segments_BT, positions_BT)
        return gpt.token_output(model, weights, x_BTD)
