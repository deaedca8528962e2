"""What a language model knows by heart: training texts that it goes on with by itself, and planted ones that it prefers.

Extraction (Carlini et al. 2023, arXiv:2202.07646): a text counts where, after its first tokens, each next one is the likeliest.
Greedy generation would then write it, so one pass over the text tells. Of validation texts, which the model has not seen, the
same share says how much can be guessed.

Exposure (Carlini et al. 2019, arXiv:1802.08232): a canary is a text with digits drawn at random that was put into the training
data. Ranked by likelihood among texts with other digits, it is the r-th of R: its exposure is log2(R / r). One that the model
does not know has a rank by chance, and an exposure of 1.4 on average; log2(R) is the most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.store import open_samples
from trainer.data.windows import Arrays, Int64Array, Samples
from trainer.errors import DataError, UserError
from trainer.models import blocks, gpt
from trainer.models.blocks import TokenOutput
from trainer.prediction.model import TrainedModel, load_model
from trainer.prediction.rows import batches, rectangle

_DIGIT = re.compile(r"\d")
_SEED = 20_190_808  # of the samples and digits that are drawn: the same for all models


@dataclass(frozen=True)
class Extraction:
    """How much is tried: of so many samples a prompt of `num_prompt` tokens, and the `num_tokens` after it."""

    num_samples: int = 1_000
    num_prompt: int = 50
    num_tokens: int = 50
    batch_size: int = 16


def measure(
    path: Path, checkpoint: str, extraction: Extraction, canaries: Sequence[str], num_alternatives: int
) -> dict[str, object]:
    """The shares of training and validation texts that can be extracted from a run's model, and the exposure of each canary.

    Raises UserError where the run is no language model's, its store is not there, a row has too few tokens, or a canary has no
    digit.
    """
    model = load_model(path, checkpoint)
    config = model.config
    if config.task != "language_modeling":
        raise UserError(
            f"{path}: got a run of {config.task}, expected one of language_modeling: others write no text they read"
        )
    needed = extraction.num_prompt + extraction.num_tokens
    if needed > config.data.sequence_length:
        raise UserError(
            f"--prompt-tokens and --tokens: got {needed} together, expected at most the {config.data.sequence_length} of a row"
        )
    result: dict[str, object] = {
        "run": str(path), "prompt_tokens": extraction.num_prompt, "tokens": extraction.num_tokens
    }  # fmt: skip
    for split in ("train", "validation") if config.data.validation else ("train",):
        samples = open_samples(config, split, fingerprint=model.tokenizer.fingerprint, is_evaluated=True)
        num_tried, num_known = _extracted(model, samples, extraction)
        result[split] = {"samples": num_tried, "extracted": num_known, "share": num_known / max(1, num_tried)}
    if canaries:
        score = _scorer(model, extraction.batch_size)
        result["canaries"] = [_exposure(model, text, number, num_alternatives, score) for number, text in enumerate(canaries)]
    return result


def _extracted(model: TrainedModel, datasets: Sequence[Samples], extraction: Extraction) -> tuple[int, int]:
    """How many samples were long enough, and of how many all that follows the prompt is the likeliest."""
    first, last = extraction.num_prompt - 1, extraction.num_prompt + extraction.num_tokens - 1

    @tf.function(autograph=False)
    def likeliest(features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        weights, settings = model.computed(), model.config.model
        x_BTD = gpt.hidden_states(
            settings, weights, features["inputs"], None, features.get("segments"), features.get("positions")
        )
        output = gpt.token_output(settings, weights, x_BTD)
        following = TokenOutput(output.vectors_BTD[:, first:], output.table_VD, output.bias_V)
        return tf.argmax(blocks.token_scores(following), -1, output_type=tf.int32)

    num_tried = num_known = 0
    for arrays in _drawn(datasets, extraction):
        row = {name: array[:, :last] for name, array in arrays.items()}
        found = likeliest({name: tf.constant(row[name]) for name in row if name != "targets"}).numpy()
        is_long = (row["targets"] >= 0).all(1)
        if "segments" in row:  # of rows of several texts, those whose first is long enough
            is_long &= (row["segments"] == 1).all(1)
        is_known = (found == row["targets"][:, first:]).all(1)
        num_tried += int(is_long.sum())
        num_known += int((is_long & is_known).sum())
    return num_tried, num_known


def _drawn(datasets: Sequence[Samples], extraction: Extraction) -> list[Arrays]:
    """Batches of samples of all data sets, each sample at most once; the last one is padded."""
    sizes = [samples.num_samples for samples in datasets]
    generator = np.random.Generator(np.random.Philox(_SEED))
    count = min(extraction.num_samples, sum(sizes))
    chosen = np.sort(generator.choice(sum(sizes), count, replace=False))
    found = []
    begin = 0
    for samples, size in zip(datasets, sizes, strict=True):
        numbers = chosen[(chosen >= begin) & (chosen < begin + size)] - begin
        begin += size
        for place in range(0, len(numbers), extraction.batch_size):
            indices: Int64Array = np.full(extraction.batch_size, -1, np.int64)
            batch = numbers[place : place + extraction.batch_size]
            indices[: len(batch)] = batch
            found.append(samples.gather(indices, indices))
    return found


Score = Callable[[Sequence[str]], list[float]]


def _scorer(model: TrainedModel, batch_size: int) -> Score:
    """A function from texts to how unlikely each is: the sum of the losses of its tokens, in nats."""
    end_of_text, length = model.tokenizer.end_of_text, model.config.data.sequence_length

    @tf.function(autograph=False)
    def losses(inputs_BT: tf.Tensor, targets_BT: tf.Tensor) -> tf.Tensor:
        logits_BTV = gpt.logits(model.config.model, model.computed(), inputs_BT)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(targets_BT, 0), logits_BTV)
        return tf.reduce_sum(tf.where(targets_BT >= 0, each, 0.0), -1)

    def score(texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        rows = [np.array([end_of_text, *tokens], np.int32) for tokens in model.tokenizer.encode_batch(texts)]
        for batch in batches(rows, batch_size):
            tokens, segments = rectangle(batch, end_of_text, batch_size, length + 1)
            targets = np.where(segments[:, 1:] == 1, tokens[:, 1:], -1)
            sums = losses(tf.constant(tokens[:, :-1]), tf.constant(targets)).numpy().tolist()
            found += sums[: len(batch)]
        return found

    return score


def _exposure(model: TrainedModel, text: str, number: int, num_alternatives: int, score: Score) -> dict[str, Any]:
    digits = _DIGIT.findall(text)
    if not digits:
        raise DataError(
            f"canary {number + 1}: got {text[:40]!r}, expected a text with digits, which are drawn anew to compare it"
        )
    if len(model.tokenizer.encode(text)) > model.config.data.sequence_length:
        raise DataError(f"canary {number + 1}: is longer than a row of the model's {model.config.data.sequence_length} tokens")
    generator = np.random.Generator(np.random.Philox(key=[_SEED, number]))
    drawn = generator.integers(0, 10, (num_alternatives, len(digits)))
    others = [_with_digits(text, each) for each in drawn.tolist()]
    own, *theirs = score([text, *others])
    rank = 1 + sum(other < own for other in theirs)
    return {"text": text, "rank": rank, "of": num_alternatives + 1, "exposure": math.log2((num_alternatives + 1) / rank)}


def _with_digits(text: str, digits: Sequence[int]) -> str:
    following = iter(digits)
    return _DIGIT.sub(lambda _: str(next(following)), text)
