"""The task `classification`: which class one or two texts have, or which classes.

Axes as in `models.blocks`; K texts that a row may hold, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.windows import Int64Array, Samples
from trainer.models import bag_of_embeddings, bert, blocks, gpt
from trainer.models.blocks import DropoutKey, Weights
from trainer.tasks.class_metrics import class_metrics
from trainer.tasks.places import vectors_at
from trainer.tasks.task import Features, Outputs, Sums


@dataclass(frozen=True)
class Classification:
    """Features: `inputs`, `segments` [B, T]; `places` [B, K], where the text's vector is read; `labels` [B, K], -1 where there
    is no text, or with `data.multi_label` [B, K, C] of 0, 1, and -1; of pairs `types`, of packed rows `positions` [B, T].

    With mixup all of these again as `inputs_b` and so on, and `mix` float32 [B, 1], the share of the first: the vectors of the
    two texts are mixed, and so are their losses (Guo et al. 2019, arXiv:1905.08941).
    """

    config: Config

    def loss_sums(
        self,
        weights: Weights,
        features: Features,
        dropout_key: DropoutKey | None = None,
        loss_scale: tf.Tensor | None = None,
    ) -> Sums:
        """The cross-entropy, of a set of classes the mean of their binary ones; one a text."""
        smoothing = self.config.train.label_smoothing if dropout_key is not None else 0.0
        vectors_BKD = self._vectors(weights, features, dropout_key)
        if "mix" not in features:
            logits_BKC = self._logits(weights, vectors_BKD)
            return _sums(self._losses(logits_BKC, features["labels"], smoothing), features["labels"])
        second = {name.removesuffix("_b"): value for name, value in features.items() if name.endswith("_b")}
        if dropout_key is not None:
            # Its rows are others: they come after those of any batch.
            dropout_key = DropoutKey(dropout_key.seed, dropout_key.first_row + self.config.train.global_batch_size)
        share_B1 = features["mix"]
        share_B11 = tf.cast(share_B1[:, :, None], vectors_BKD.dtype)
        mixed_BKD = share_B11 * vectors_BKD + (1.0 - share_B11) * self._vectors(weights, second, dropout_key)
        logits_BKC = self._logits(weights, mixed_BKD)
        losses_BK = share_B1 * self._losses(logits_BKC, features["labels"], smoothing)
        losses_BK += (1.0 - share_B1) * self._losses(logits_BKC, second["labels"], smoothing)
        return _sums(losses_BK, features["labels"])

    def num_tokens(self, features: Features) -> tf.Tensor:
        names = [name for name in ("segments", "segments_b") if name in features]
        return tf.add_n([tf.reduce_sum(tf.cast(features[name] > 0, tf.float32)) for name in names])

    def evaluate(self, weights: Weights, features: Features) -> tuple[Sums, Outputs]:
        """Outputs: `scores` float32 [B, K, C], the classes' probabilities, and the `labels`."""
        logits_BKC, labels = self._logits(weights, self._vectors(weights, features, None)), features["labels"]
        sums = _sums(self._losses(logits_BKC, labels, 0.0), labels)
        return sums, {"scores": self._probabilities(logits_BKC), "labels": labels}

    def scores(self, weights: Weights, features: Features) -> tf.Tensor:
        """The probability of each class for each text, float32 [B, K, C]: they add up to 1 but with `data.multi_label`."""
        return self._probabilities(self._logits(weights, self._vectors(weights, features, None)))

    def metrics(
        self, outputs: Mapping[str, np.ndarray], samples: Sequence[Samples], sample_ids: Int64Array
    ) -> dict[str, float]:
        scores, labels = outputs["scores"], outputs["labels"]
        is_text = labels[:, :, 0] >= 0 if self.config.data.multi_label else labels >= 0
        return class_metrics(scores[is_text], labels[is_text])

    def _vectors(self, weights: Weights, features: Features, dropout_key: DropoutKey | None) -> tf.Tensor:
        """What the classifier reads of each text: [B, K, D]."""
        model, tokens_BT, segments_BT = self.config.model, features["inputs"], features["segments"]
        places_BK, positions_BT = features["places"], features.get("positions")
        match model.family:
            case "bag_of_embeddings":
                num_texts = places_BK.shape[1]
                return bag_of_embeddings.averages(model, weights, tokens_BT, segments_BT, num_texts, dropout_key)
            case "bert":
                types_BT = features.get("types")
                x_BTD = bert.hidden_states(model, weights, tokens_BT, segments_BT, types_BT, positions_BT, dropout_key)
                if model.pooling == "mean":
                    return blocks.segment_means(x_BTD, segments_BT, places_BK.shape[1])
                return bert.pooled(model, weights, vectors_at(x_BTD, places_BK))
            case _:
                segments = None if positions_BT is None else segments_BT
                x_BTD = gpt.hidden_states(model, weights, tokens_BT, dropout_key, segments, positions_BT)
                return blocks.normalize(model, weights, "final_norm", vectors_at(x_BTD, places_BK))

    def _logits(self, weights: Weights, vectors_BKD: tf.Tensor) -> tf.Tensor:
        """Float32 [B, K, C], or [B, K, 1] where one sigmoid stands for two classes."""
        return tf.cast(blocks.linear(self.config.model, weights, "classifier", vectors_BKD), tf.float32)

    def _losses(self, logits_BKC: tf.Tensor, labels: tf.Tensor, smoothing: float) -> tf.Tensor:
        """The loss of each text, [B, K], whatever where there is none."""
        if self.config.data.multi_label:
            return tf.reduce_mean(_binary_losses(logits_BKC, labels, smoothing), -1)
        if logits_BKC.shape[-1] == 1:
            return _binary_losses(logits_BKC[..., 0], labels, smoothing)
        num_classes = logits_BKC.shape[-1]
        expected_BKC = (1.0 - smoothing) * tf.one_hot(labels, num_classes) + smoothing / num_classes
        return tf.nn.softmax_cross_entropy_with_logits(expected_BKC, logits_BKC)

    def _probabilities(self, logits_BKC: tf.Tensor) -> tf.Tensor:
        if self.config.data.multi_label:
            return tf.sigmoid(logits_BKC)
        if logits_BKC.shape[-1] == 1:
            return tf.concat([tf.sigmoid(-logits_BKC), tf.sigmoid(logits_BKC)], -1)
        return tf.nn.softmax(logits_BKC)


def _binary_losses(logits: tf.Tensor, labels: tf.Tensor, smoothing: float) -> tf.Tensor:
    """The cross-entropies of yes (1) and no (0); smoothing gives its share to both alike."""
    expected = (1.0 - smoothing) * tf.cast(labels, tf.float32) + smoothing / 2
    return tf.nn.sigmoid_cross_entropy_with_logits(expected, logits)


def _sums(losses_BK: tf.Tensor, labels: tf.Tensor) -> Sums:
    """Over all texts that there are."""
    is_text_BK = labels >= 0 if len(labels.shape) == 2 else labels[:, :, 0] >= 0
    # Not a product: what stands where there is no text may be anything.
    losses_BK = tf.where(is_text_BK, losses_BK, tf.zeros_like(losses_BK))
    return tf.reduce_sum(losses_BK), tf.reduce_sum(tf.cast(is_text_BK, tf.float32))
