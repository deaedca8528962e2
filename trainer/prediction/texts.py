"""Predictions that are texts: continuations, translations, summaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import GenerationConfig
from trainer.generation import Writer
from trainer.prediction.inputs import Item
from trainer.prediction.model import TrainedModel

Row = tuple[str, int, npt.NDArray[np.int32], npt.NDArray[np.float32]]


def write_texts(model: TrainedModel, items: Iterable[Item], generation: GenerationConfig) -> Iterator[dict[str, Any]]:
    """For each item in order `samples` texts: of a language model prompt, sample, text, num_tokens, and `finish`, which is
    `end_of_text`, `stop` or `max_tokens`; else the text, and the sample where there are several.

    Raises UserError where a prompt with what shall follow is longer than the model's sequences.
    """
    writer = Writer(model.config, model.weights, model.tokenizer, generation)
    rows = _rows(model, writer, items, generation.samples)
    while batch := list(islice(rows, generation.batch_size)):
        written = writer.write([read for _, _, read, _ in batch], [numbers for _, _, _, numbers in batch])
        for (prompt, sample, _, _), each in zip(batch, written, strict=True):
            if model.config.task != "language_modeling":
                yield {"text": each.text} if generation.samples == 1 else {"text": each.text, "sample": sample}
            else:
                yield {
                    "prompt": prompt,
                    "sample": sample,
                    "text": each.text,
                    "num_tokens": each.num_tokens,
                    "finish": each.finish,
                }


def _rows(model: TrainedModel, writer: Writer, items: Iterable[Item], num_samples: int) -> Iterator[Row]:
    """Prompt, number of the sample, what is read, and the random numbers that the text is drawn with."""
    for number, item in enumerate(items):
        (text,) = item.values()
        read = writer.read(model.tokenizer.encode(text), f"prompt {number + 1}")
        for sample in range(num_samples):
            yield text, sample, read, writer.numbers(number * num_samples + sample)
