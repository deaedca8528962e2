"""The task `question_answering`: where in a context the answer to a question begins and ends (Devlin et al. 2019, section 4.2).

Axes as in `models.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.samples.question_answering import QuestionSamples
from trainer.data.windows import Int64Array, Samples
from trainer.models import bert, blocks
from trainer.models.blocks import MASKED, DropoutKey, Weights
from trainer.tasks.answer_metrics import Prediction, answer_metrics
from trainer.tasks.task import Features, Outputs, Sums


@dataclass(frozen=True)
class QuestionAnswering:
    """Features: `inputs`, `segments`, `types`, `context_mask` [B, T]; `start` and `end` [B, 1], 0 where there is no answer."""

    config: Config

    def loss_sums(
        self,
        weights: Weights,
        features: Features,
        dropout_key: DropoutKey | None = None,
        loss_scale: tf.Tensor | None = None,
    ) -> Sums:
        """The mean of the cross-entropies of begin and end, one a window."""
        smoothing = self.config.train.label_smoothing if dropout_key is not None else 0.0
        return self._loss_sums(self._logits(weights, features, dropout_key), features, smoothing)

    def num_tokens(self, features: Features) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(features["segments"] > 0, tf.float32))

    def evaluate(self, weights: Weights, features: Features) -> tuple[Sums, Outputs]:
        """Outputs as of `best_spans`."""
        logits_BT2 = self._logits(weights, features, None)
        return self._loss_sums(logits_BT2, features, 0.0), self._best_spans(logits_BT2, features)

    def best_spans(self, weights: Weights, features: Features) -> Outputs:
        """`span` int32 [B, 2], the first and last place of a window's likeliest answer of at most `data.answer_length` tokens;
        `score` float32 [B], the sum of its two logits; `null_score`, that of [CLS], which stands for no answer."""
        return self._best_spans(self._logits(weights, features, None), features)

    def metrics(
        self, outputs: Mapping[str, np.ndarray], samples: Sequence[Samples], sample_ids: Int64Array
    ) -> dict[str, float]:
        """SQuAD's `exact_match` and `f1`, in percent, over the questions of which all windows were read.

        Of a question's windows the one with the best score answers; none does where the null score of each is higher than
        that, if there are questions without an answer at all.
        """
        firsts = np.cumsum([0, *(each.num_samples for each in samples)])
        sources = np.searchsorted(firsts, sample_ids, side="right") - 1
        predictions: list[Prediction] = []
        for number, part in enumerate(samples):
            assert isinstance(part, QuestionSamples)
            here = np.flatnonzero(sources == number)
            predictions += _predictions(part, sample_ids[here] - firsts[number], {k: v[here] for k, v in outputs.items()})
        return answer_metrics(predictions)

    def _logits(self, weights: Weights, features: Features, dropout_key: DropoutKey | None) -> tf.Tensor:
        """How likely each token begins and ends the answer, float32 [B, T, 2]."""
        x_BTD = bert.hidden_states(
            self.config.model, weights, features["inputs"], features["segments"], features["types"], None, dropout_key
        )
        return tf.cast(blocks.linear(self.config.model, weights, "span", x_BTD), tf.float32)

    def _loss_sums(self, logits_BT2: tf.Tensor, features: Features, smoothing: float) -> Sums:
        is_allowed_BT1 = (features["context_mask"] > 0)[:, :, None] | (tf.range(logits_BT2.shape[1]) == 0)[:, None]
        logs_BT2 = tf.nn.log_softmax(tf.where(is_allowed_BT1, logits_BT2, MASKED), 1)
        targets_B2 = tf.concat([features["start"], features["end"]], 1)
        losses_B2 = -tf.gather(tf.transpose(logs_BT2, (0, 2, 1)), tf.maximum(targets_B2, 0), batch_dims=2)
        if smoothing:
            # The cross-entropy with the even distribution over what is allowed.
            allowed_BT1 = tf.cast(is_allowed_BT1, tf.float32)
            even_B2 = -tf.reduce_sum(tf.where(is_allowed_BT1, logs_BT2, 0.0), 1) / tf.reduce_sum(allowed_BT1, 1)
            losses_B2 = (1.0 - smoothing) * losses_B2 + smoothing * even_B2
        is_counted_B = tf.cast(features["start"][:, 0] >= 0, tf.float32)
        return tf.reduce_sum(tf.reduce_mean(losses_B2, 1) * is_counted_B), tf.reduce_sum(is_counted_B)

    def _best_spans(self, logits_BT2: tf.Tensor, features: Features) -> Outputs:
        time = logits_BT2.shape[1]
        begins_BT, ends_BT = tf.unstack(tf.where((features["context_mask"] > 0)[:, :, None], logits_BT2, MASKED), axis=2)
        lengths_TT = np.arange(time) - np.arange(time)[:, None] + 1
        is_span_TT = (lengths_TT >= 1) & (lengths_TT <= self.config.data.answer_length)
        scores_BTT = begins_BT[:, :, None] + ends_BT[:, None, :] + tf.constant(np.where(is_span_TT, 0.0, MASKED), tf.float32)
        scores_BN = tf.reshape(scores_BTT, (-1, time * time))
        best_B = tf.argmax(scores_BN, 1, output_type=tf.int32)
        return {
            "span": tf.stack([best_B // time, best_B % time], 1),
            "score": tf.reduce_max(scores_BN, 1),
            "null_score": tf.reduce_sum(logits_BT2[:, 0], -1),
        }


def _predictions(samples: QuestionSamples, ids: Int64Array, outputs: Mapping[str, np.ndarray]) -> Iterator[Prediction]:
    """What is answered to each question of one data set, of whose windows `ids` these are the outputs."""
    records = samples.record_of(ids)
    for record in np.unique(records).tolist():
        rows = np.flatnonzero(records == record)
        if len(rows) < samples.num_windows[record]:
            continue
        best = rows[np.argmax(outputs["score"][rows])]
        text = samples.text_at(int(ids[best]), *outputs["span"][best].tolist())
        is_none_likelier = bool(outputs["null_score"][rows].min() > outputs["score"][best])
        yield Prediction(text, is_none_likelier, samples.answers(record))
