"""Validation by texts: the model writes translations or summaries of validation records, which are scored against theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.config import Config, GenerationConfig
from trainer.data.records import RecordTable
from trainer.data.store import TokenStore, store_tokenizer
from trainer.distribution import Distribution, gather
from trainer.encryption.files import Encryption
from trainer.generation import Writer
from trainer.tasks.text_metrics import score_texts


class TextEvaluation:
    """The first `evaluation.generate` validation records, each written by one of the processes. None of it is packed."""

    def __init__(
        self, config: Config, weights: Mapping[str, tf.Variable], distribution: Distribution, generation: GenerationConfig
    ) -> None:
        """`generation.batch_size` is that of each process."""
        self._task, self._distribution = config.task, distribution
        self._writer = Writer(config, weights, store_tokenizer(config), generation)
        self._tables = TokenStore(Path(config.data.store), "validation", Encryption.of(config.security)).tables
        self._starts = np.cumsum([0, *(table.num_records for table in self._tables)])
        self.num_texts = min(config.evaluation.generate, int(self._starts[-1]))
        # Neighbours in order of length take about as long: few wait for others of their batch, or for other processes.
        lengths = np.concatenate([table.lengths("source") for table in self._tables])[: self.num_texts]
        order = np.argsort(-lengths, kind="stable")
        mine = order[distribution.rank :: distribution.num_processes]
        batch_size = generation.batch_size
        most = -(-self.num_texts // distribution.num_processes)
        self._batches = [mine[first : first + batch_size].tolist() for first in range(0, most, batch_size)]

    def write(self) -> Iterator[dict[int, str]]:
        """The texts of each batch, by the numbers of their records; as many batches on all processes."""
        for numbers in self._batches:
            sources = [table.tokens("source", row) for table, row in map(self._record, numbers)]
            read = [self._writer.read(source, "") for source in sources]
            written = self._writer.write(read) if read else []
            yield {number: each.text for number, each in zip(numbers, written, strict=True)}

    def score(self, texts: Mapping[int, str]) -> dict[str, float]:
        """What the texts of all processes are worth, by names of `config.METRICS_OF_TEXTS`. Every process must call it."""
        gathered = _gather_texts(self._distribution, texts)
        numbers = sorted(gathered)
        references = [table.text("target_text", row) for table, row in map(self._record, numbers)]
        assert self._task == "translation" or self._task == "summarization"
        return score_texts(self._task, [gathered[number] for number in numbers], references)

    def _record(self, number: int) -> tuple[RecordTable, int]:
        table = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._tables[table], number - int(self._starts[table])


def _gather_texts(distribution: Distribution, texts: Mapping[int, str]) -> dict[int, str]:
    """The texts of all processes."""
    content = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    lengths: Sequence[int] = gather(distribution, np.array([len(content)], np.int64))[:, 0].tolist()
    padded = np.zeros(max(lengths), np.int64)
    padded[: len(content)] = content
    result: dict[int, str] = {}
    for row, length in zip(gather(distribution, padded), lengths, strict=True):
        decoded = json.loads(row[:length].astype(np.uint8).tobytes())
        result |= {int(number): text for number, text in decoded.items()}
    return result
