"""Samples of the task `question_answering`: windows of a context, each with the question, and where in it the answer is.

B: samples of a batch, T: sequence length, W: windows of all records.
"""

from __future__ import annotations

import json

import numpy as np

from trainer.config import Config
from trainer.data.assembly import Window, num_question_windows, question_window
from trainer.data.records import RecordTable
from trainer.data.samples.layout import Contents, Layout, joined, lengths_of
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import NOT_COUNTED, Arrays, Feature, Features, Int64Array


class QuestionSamples:
    """A sample is a window of a record. An answer that is not wholly within it counts as none, which [CLS] stands for."""

    def __init__(self, config: Config, table: RecordTable, tokenizer: Tokenizer) -> None:
        self._config, self._table, self._specials = config, table, tokenizer.specials
        num_windows = num_question_windows(config, table.lengths("question"), table.lengths("context"))
        self._records = np.repeat(np.arange(table.num_records), num_windows)  # [W]
        self._firsts = np.cumsum(num_windows) - num_windows  # the first window of each record
        self.num_windows = num_windows  # of each record
        self.num_samples = len(self._records)

    @property
    def features(self) -> Features:
        row, one = Feature((self._config.data.sequence_length,)), Feature((1,))
        return {"inputs": row, "segments": row, "types": row, "context_mask": row, "start": one, "end": one}

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        contents = Contents(indices, None)
        windows = [self._window(index) for index in contents.pieces.tolist()]
        layout = Layout(contents, lengths_of([each.tokens for each in windows]), self._config.data.sequence_length)
        arrays: Arrays = {
            "inputs": layout.fill(joined([each.tokens for each in windows]), self._specials.padding),
            "segments": layout.segments(),
            "types": layout.fill(joined([each.types for each in windows]), 0),
            "context_mask": np.zeros((len(indices), self._config.data.sequence_length), np.int32),
            "start": np.full((len(indices), 1), NOT_COUNTED, np.int32),
            "end": np.full((len(indices), 1), NOT_COUNTED, np.int32),
        }
        for row, index, window in zip(contents.rows.tolist(), contents.pieces.tolist(), windows, strict=True):
            first = window.context_place
            arrays["context_mask"][row, first : first + window.num_context_tokens] = 1
            arrays["start"][row], arrays["end"][row] = self._answer_places(int(self._records[index]), window)
        return arrays

    def record_of(self, indices: Int64Array) -> Int64Array:
        """The records whose windows these samples are."""
        return self._records[indices]

    def contexts(self) -> Int64Array:
        """The number of each sample's context, from 0 in the order in which they come [num_samples]. Reads all contexts."""
        numbers: dict[str, int] = {}
        texts = (self._table.text("context_text", record) for record in range(self._table.num_records))
        of_records = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
        return of_records[self._records]

    def text_at(self, index: int, start: int, end: int) -> str:
        """The text of the context from the place `start` of a window to the place `end`, both inclusive."""
        window, record = self._window(index), int(self._records[index])
        if not window.num_context_tokens:
            return ""
        offsets = self._table.integers("context_offsets", record)
        first, last = (place - window.context_place + window.first_context_token for place in (start, end))
        return self._table.text("context_text", record)[int(offsets[2 * first]) : int(offsets[2 * last + 1])]

    def answers(self, record: int) -> list[str]:
        """The texts that are right; none where the question cannot be answered."""
        answers: list[str] = json.loads(self._table.text("answers", record))
        return answers

    def _window(self, index: int) -> Window:
        record = int(self._records[index])
        question, context = self._table.tokens("question", record), self._table.tokens("context", record)
        return question_window(self._config, self._specials, question, context, index - int(self._firsts[record]))

    def _answer_places(self, record: int, window: Window) -> tuple[int, int]:
        answer = self._table.integers("answer", record)
        if not len(answer):
            return 0, 0
        first, last = (int(token) - window.first_context_token for token in answer)
        if first < 0 or last >= window.num_context_tokens:
            return 0, 0
        return window.context_place + first, window.context_place + last
