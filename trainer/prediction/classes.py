"""Predictions of the task `classification`. B: texts of a batch, C: classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import GenerationConfig
from trainer.data.assembly import classification_sequence
from trainer.data.windows import Int32Array
from trainer.prediction.inputs import Item
from trainer.prediction.model import TrainedModel
from trainer.prediction.rows import batches, rectangle
from trainer.tasks.classification import Classification

LIKELY = 0.5  # from this probability on a text of several classes has one


def classify(model: TrainedModel, items: Iterable[Item], generation: GenerationConfig) -> Iterator[dict[str, Any]]:
    """For each item `label`, the likeliest class, or with `data.multi_label` the `labels` that are likelier than not, and
    `scores`, the probability of each class."""
    config, size = model.config, generation.batch_size
    task = Classification(config)

    @tf.function(autograph=False)
    def compute(features: dict[str, tf.Tensor]) -> tf.Tensor:
        return task.scores(model.computed(), features)[:, 0]

    for batch in batches((_sequence(model, item) for item in items), size):
        tokens, segments = rectangle([each for each, _ in batch], model.padding, size, config.data.sequence_length)
        types, _ = rectangle([each for _, each in batch], 0, size, config.data.sequence_length)
        last = np.maximum(segments.sum(1, keepdims=True) - 1, 0).astype(np.int32)
        features = {
            "inputs": tf.constant(tokens),
            "segments": tf.constant(segments),
            "types": tf.constant(types),
            "places": tf.constant(last if config.model.family != "bert" else np.zeros_like(last)),
        }
        for scores in compute(features).numpy()[: len(batch)].tolist():
            named = dict(zip(model.labels, (round(score, 6) for score in scores), strict=True))
            if config.data.multi_label:
                yield {"labels": [label for label, score in named.items() if score >= LIKELY], "scores": named}
            else:
                yield {"label": model.labels[int(np.argmax(scores))], "scores": named}


def _sequence(model: TrainedModel, item: Item) -> tuple[Int32Array, Int32Array]:
    encoded = {name: np.array(model.tokenizer.encode(text), np.int32) for name, text in item.items()}
    return classification_sequence(model.config, model.tokenizer.specials, encoded["text"], encoded.get("text_b"))
