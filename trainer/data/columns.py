"""Which columns the records of each task have in a store, and how records become them.

    documents (language models)    tokens: a row for each document or piece of one, the last with the end-of-text token
    classification                 text, text_b; labels (numbers of classes)
    translation, summarization     source, target; target_text (for metrics; empty in the training split)
    question_answering             context, question; context_offsets (begin and end character of each token of the context,
                                   one after the other); answer (first and last token of the first answer, or nothing);
                                   context_text, question_id, answers (a JSON list of all answers' texts)

Where `data.fields.group` is given there is `group`, a list of one number, too.

Of classification, translation and summarization the training split also has `back_translation`, of the text or the source,
where the configuration names a file of them; it is empty where that has none. Tokens come without any special ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.data.readers import TEXT_FIELDS, Answer, Reading, Record
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError

BACK_TRANSLATION = "back_translation"
GROUP = "group"

_TEXTS: dict[str, tuple[str, ...]] = {
    "classification": ("text", "text_b"),
    "translation": ("source", "target"),
    "summarization": ("source", "target"),
    "question_answering": ("context", "question"),
}
_INTEGERS = {"classification": ("labels",), "question_answering": ("context_offsets", "answer")}
_STRINGS = {
    "translation": ("target_text",),
    "summarization": ("target_text",),
    "question_answering": ("context_text", "question_id", "answers"),
}


@dataclass(frozen=True)
class Columns:
    """The names of a part's columns, by what they hold."""

    tokens: tuple[str, ...]
    integers: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()

    def schema(self, dtype: type[Any]) -> pa.Schema:
        kinds = [(name, token_list(dtype)) for name in self.tokens]
        kinds += [(name, pa.list_(pa.field("item", pa.int32(), nullable=False))) for name in self.integers]
        kinds += [(name, pa.large_string()) for name in self.strings]
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds])


def columns_of(reading: Reading, *, has_back_translations: bool) -> Columns:
    if reading.is_of_documents:
        return Columns(("tokens",))
    fields = [column.field for column in reading.columns]
    num_texts = sum(field in TEXT_FIELDS for field in fields)
    tokens = _TEXTS[reading.task][:num_texts] + ((BACK_TRANSLATION,) if has_back_translations else ())
    integers = _INTEGERS.get(reading.task, ()) + ((GROUP,) if GROUP in fields else ())
    return Columns(tokens, integers, _STRINGS.get(reading.task, ()))


def token_list(dtype: type[Any]) -> pa.DataType:
    return pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))


def token_dtype(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary_size <= 2**16 else np.uint32


@dataclass
class RecordEncoder:
    """Turns records into record batches; holds those that are not yet a batch.

    `labels` are the names of the classes in the order of their numbers; `back_translations` is None where there shall be
    no such column.
    """

    reading: Reading
    tokenizer: Tokenizer
    labels: Sequence[str]
    is_training: bool
    back_translations: Mapping[str, str] | None

    def __post_init__(self) -> None:
        self.dtype = token_dtype(self.tokenizer.vocabulary_size)
        self.columns = columns_of(self.reading, has_back_translations=self.back_translations is not None)
        self.schema = self.columns.schema(self.dtype)
        self.num_tokens = 0
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self._lists: dict[str, list[npt.NDArray[Any]]] = {}
        self._strings: dict[str, list[str]] = {}
        self._clear()

    def add(self, records: Sequence[Record]) -> None:
        """Encodes some records; `num_tokens` counts what is held."""
        for number, name in enumerate(name for name in self.columns.tokens if name != BACK_TRANSLATION):
            if name == "context":
                self._add_contexts(records)
            else:
                self._add_texts(name, [record.texts[number] for record in records])
        if self.back_translations is not None:
            back_translations = self.back_translations
            self._add_texts(BACK_TRANSLATION, [back_translations.get(record.texts[0], "") for record in records])
        if GROUP in self._lists:
            self._lists[GROUP] += [np.array([_group_number(record.group)], np.int32) for record in records]
        if self.reading.task == "classification":
            self._lists["labels"] += [np.array(sorted(map(self._number, r.labels)), np.int32) for r in records]
        elif self.reading.task == "question_answering":
            self._strings["context_text"] += [record.texts[0] for record in records]
            self._strings["question_id"] += [record.question_id for record in records]
            texts = ([answer.text for answer in record.answers] for record in records)
            self._strings["answers"] += [json.dumps(each, ensure_ascii=False) for each in texts]
        else:
            self._strings["target_text"] += ["" if self.is_training else record.texts[1] for record in records]

    def take(self) -> pa.RecordBatch:
        """All records that are held, as one batch."""
        arrays = [_list_array(self._lists[name], self.schema.field(name).type) for name in self._lists]
        arrays += [pa.array(texts, pa.large_string()) for texts in self._strings.values()]
        self._clear()
        return pa.record_batch(arrays, schema=self.schema)

    def _clear(self) -> None:
        self.num_tokens = 0
        self._lists = {name: [] for name in self.columns.tokens + self.columns.integers}
        self._strings = {name: [] for name in self.columns.strings}

    def _add_texts(self, name: str, texts: Sequence[str]) -> None:
        rows = [ids.astype(self.dtype) for ids in self.tokenizer.encode_batch(texts)]
        self._lists[name] += rows
        self.num_tokens += sum(map(len, rows))

    def _add_contexts(self, records: Sequence[Record]) -> None:
        for record in records:
            tokens, offsets = _encoded_context(self.tokenizer, record.texts[0])
            self._lists["context"].append(tokens.astype(self.dtype))
            self._lists["context_offsets"].append(offsets.ravel())
            answer = _answer_tokens(offsets, record.answers[0]) if record.answers else []
            self._lists["answer"].append(np.array(answer, np.int32))
            self.num_tokens += len(tokens)

    def _number(self, label: str) -> int:
        try:
            return self._numbers[label]
        except KeyError:
            raise DataError(f"label {label!r} has come into the input while it was read; run drumline prepare again") from None


def _group_number(group: str) -> int:
    """31 bits of a hash. Two groups that have the same, which of a hundred thousand two or three have, count as one."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=4).digest(), "little") >> 1


@functools.lru_cache(maxsize=4)
def _encoded_context(tokenizer: Tokenizer, context: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Tokens and offsets [tokens, 2]. Several questions in a row have one context."""
    ids, offsets = tokenizer.encode_with_offsets(context)
    return np.array(ids, np.uint32), np.array(offsets, np.int32).reshape(-1, 2)


def _answer_tokens(offsets: npt.NDArray[np.int32], answer: Answer) -> list[int]:
    """The first and the last token that have any character of the answer; nothing where none has."""
    begin, end = answer.begin, answer.begin + len(answer.text)
    found = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > begin) & (offsets[:, 0] < offsets[:, 1]))
    return [int(found[0]), int(found[-1])] if len(found) else []


def _list_array(rows: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.Array:
    is_large = pa.types.is_large_list(kind)
    values = pa.array(np.concatenate([*rows, np.zeros(0, rows[0].dtype)]) if rows else [], kind.value_type)
    offsets = pa.array(np.cumsum([0, *map(len, rows)]), pa.int64() if is_large else pa.int32())
    return (pa.LargeListArray if is_large else pa.ListArray).from_arrays(offsets, values, type=kind)
