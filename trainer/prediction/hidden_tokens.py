"""Predictions of the task `masked_language_modeling`. B: texts of a batch, N: masks of a text, K: candidates for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config import GenerationConfig
from trainer.data.tokenizer import MASK_NAMES
from trainer.errors import DataError
from trainer.models import bert
from trainer.prediction.inputs import Item
from trainer.prediction.model import TrainedModel
from trainer.prediction.rows import batches, rectangle
from trainer.tasks.places import vectors_at

NUM_CANDIDATES = 5

_MASK = re.compile("|".join(map(re.escape, MASK_NAMES)))


@dataclass(frozen=True)
class _Text:
    """A text's pieces between its masks, its tokens, and the places of the masks among them."""

    pieces: list[str]
    tokens: npt.NDArray[np.int32]
    places: npt.NDArray[np.int32]


def fill_masks(model: TrainedModel, items: Iterable[Item], generation: GenerationConfig) -> Iterator[dict[str, Any]]:
    """For each item `text`, in which the likeliest token stands for each mask, and `candidates`: for each mask a list of the
    likeliest, objects of `token` and `score`, their probability.

    Raises DataError for a text without a mask, or one that is too long.
    """
    size = generation.batch_size

    @tf.function(autograph=False)
    def compute(tokens_BT: tf.Tensor, segments_BT: tf.Tensor, places_BN: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        weights = model.computed()
        x_BTD = bert.hidden_states(model.config.model, weights, tokens_BT, segments_BT)
        logits_BNV = bert.token_logits(model.config.model, weights, vectors_at(x_BTD, places_BN))
        found: tuple[tf.Tensor, tf.Tensor] = tf.math.top_k(tf.nn.softmax(logits_BNV), NUM_CANDIDATES)
        return found

    texts = (_read(model, item["text"], f"text {number}") for number, item in enumerate(items, start=1))
    for batch in batches(texts, size):
        tokens, segments = rectangle([each.tokens for each in batch], model.padding, size, model.config.data.sequence_length)
        places, _ = rectangle([each.places for each in batch], 0, size, tokens.shape[1])
        scores, candidates = compute(*map(tf.constant, (tokens, segments, places)))
        for each, scores_NK, candidates_NK in zip(batch, scores.numpy(), candidates.numpy(), strict=False):
            count = len(each.places)
            yield {
                "text": _filled(model, each.pieces, candidates_NK[:count, 0].tolist()),
                "candidates": [
                    [
                        {"token": model.tokenizer.decode([token]), "score": round(score, 6)}
                        for token, score in zip(tokens_K, scores_K, strict=True)
                    ]
                    for tokens_K, scores_K in zip(candidates_NK[:count].tolist(), scores_NK[:count].tolist(), strict=True)
                ],
            }


def _read(model: TrainedModel, text: str, name: str) -> _Text:
    specials, length = model.tokenizer.specials, model.config.data.sequence_length
    pieces = _MASK.split(text)
    if len(pieces) == 1:
        raise DataError(f"{name}: got {text[:40]!r}, expected {MASK_NAMES[0]} in it, where a token is to be guessed")
    tokens = [specials.begin]
    for number, piece in enumerate(pieces):
        tokens += ([specials.mask] if number and specials.mask is not None else []) + model.tokenizer.encode(piece)
    tokens.append(specials.separator)
    if len(tokens) > length:
        raise DataError(f"{name}: has {len(tokens)} tokens, more than the model's {length}; shorten it")
    row = np.array(tokens, np.int32)
    return _Text(pieces, row, np.flatnonzero(row == specials.mask).astype(np.int32))


def _filled(model: TrainedModel, pieces: Sequence[str], tokens: Sequence[int]) -> str:
    """A token that goes on with a word joins what stands before it."""
    text = ""
    for piece, token in zip_longest(pieces, tokens):
        text += piece
        if token is not None:
            word = model.tokenizer.decode([token])
            text = text.rstrip() + word.removeprefix("##") if model.tokenizer.continues_word[token] else text + word
    return text
