"""Predictions of the task `question_answering`. B: windows of a batch, T: places of a window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import GenerationConfig
from trainer.data.assembly import Window, question_windows
from trainer.prediction.inputs import Item
from trainer.prediction.model import TrainedModel
from trainer.prediction.rows import batches, rectangle
from trainer.tasks.question_answering import QuestionAnswering


@dataclass(frozen=True)
class _Question:
    """A context, the characters that each of its tokens stands for, and how many windows it is read in."""

    context: str
    offsets: list[tuple[int, int]]
    num_windows: int


@dataclass(frozen=True)
class _Span:
    """The best answer of a window: where it stands in the context, its score, and that of having none."""

    text: str
    score: float
    null_score: float


def answer(model: TrainedModel, items: Iterable[Item], generation: GenerationConfig) -> Iterator[dict[str, Any]]:
    """For each item `answer`, the likeliest of all windows, and `score`, the probability of that against no answer.

    Where the training data had questions without an answer, and none is likelier, the answer is "", and the score its
    probability.
    """
    spans: list[_Span] = []
    for question, span in _spans(model, items, generation.batch_size):
        spans.append(span)
        if len(spans) < question.num_windows:
            continue
        best = max(spans, key=lambda each: each.score)
        is_there = 1.0 / (1.0 + math.exp(min(min(each.null_score for each in spans) - best.score, 700.0)))
        is_none = model.has_unanswerable and is_there < 0.5
        yield {"answer": "" if is_none else best.text, "score": round(1.0 - is_there if is_none else is_there, 6)}
        spans = []


def _spans(model: TrainedModel, items: Iterable[Item], size: int) -> Iterator[tuple[_Question, _Span]]:
    """The best span of each window, question by question."""
    config = model.config
    task = QuestionAnswering(config)

    @tf.function(autograph=False)
    def compute(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return task.best_spans(model.computed(), features)

    for batch in batches(_windows(model, items), size):
        windows = [window for _, window in batch]
        tokens, segments = rectangle([each.tokens for each in windows], model.padding, size, config.data.sequence_length)
        types, _ = rectangle([each.types for each in windows], 0, size, config.data.sequence_length)
        context_mask = np.zeros_like(tokens)
        for row, window in enumerate(windows):
            context_mask[row, window.context_place :][: window.num_context_tokens] = 1
        arrays = {"inputs": tokens, "segments": segments, "types": types, "context_mask": context_mask}
        outputs = {name: value.numpy() for name, value in compute({k: tf.constant(v) for k, v in arrays.items()}).items()}
        for row, (question, window) in enumerate(batch):
            first, last = (int(place) - window.context_place + window.first_context_token for place in outputs["span"][row])
            text = question.context[question.offsets[first][0] : question.offsets[last][1]] if window.num_context_tokens else ""
            yield question, _Span(text, float(outputs["score"][row]), float(outputs["null_score"][row]))


def _windows(model: TrainedModel, items: Iterable[Item]) -> Iterator[tuple[_Question, Window]]:
    for item in items:
        asked = np.array(model.tokenizer.encode(item["question"]), np.int32)
        ids, offsets = model.tokenizer.encode_with_offsets(item["context"])
        windows = question_windows(model.config, model.tokenizer.specials, asked, np.array(ids, np.int32))
        question = _Question(item["context"], offsets, len(windows))
        for window in windows:
            yield question, window
