"""Reads documents and records from a span of input, whatever its format and compression, with every complaint's place.

Everything streams: memory is bounded by the longest record, and for running text by the length of a piece. (A file in
SQuAD's format is one JSON object, and held whole.)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, BinaryIO, NamedTuple

from trainer.config import Task
from trainer.data.input_files import BLOCK_BYTES, checked_read, decode, line_number, open_span, text_lines
from trainer.data.json_files import got, is_broken, json_rows, json_texts, squad_rows
from trainer.data.overlap import OverlapIndex, OverlapReport, OverlapRule, overlapping
from trainer.data.personal_data import PersonalDataReport, PersonalDataRule, clean
from trainer.data.sources import Span, compression_of
from trainer.data.tables import FieldColumn, Row, csv_rows, parquet_byte_ranges, parquet_rows, tsv_rows
from trainer.errors import DataError

# Text goes through the tokenizer in pieces that end with a line where they can. Pieces of this size are tokenized a
# quarter faster than those of a mebibyte, which no longer fit the processor's caches.
PIECE_LENGTH = 256 * 2**10

TEXT_FIELDS = ("text", "text_b", "source", "target", "document", "summary", "context", "question")


@dataclass(frozen=True)
class Reading:
    """How input is read: its format, where the fields of the task are, whether a record may have several labels, what becomes
    of personal data, and which texts are left out since evaluations have them, or, by path and beginning of a span and
    their numbers there, since they are duplicates.

    Masked language models are trained on what language models are: both read documents, and go by `language_modeling`.
    """

    task: Task
    format: str
    columns: tuple[FieldColumn, ...]
    multi_label: bool = False
    personal_data: PersonalDataRule | None = None
    overlap: OverlapRule | None = None
    duplicates: tuple[tuple[str, int, tuple[int, ...]], ...] = ()

    @property
    def is_of_documents(self) -> bool:
        return self.task == "language_modeling"


@dataclass
class ReadingReport:
    """What was found while texts were read."""

    personal_data: PersonalDataReport = field(default_factory=PersonalDataReport)
    overlap: OverlapReport = field(default_factory=OverlapReport)

    def without_examples(self) -> ReadingReport:
        """The numbers alone: examples are parts of texts."""
        return ReadingReport(replace(self.personal_data, examples={}), replace(self.overlap, examples=[]))


class Piece(NamedTuple):
    """Some text of a document, in order; the last piece of each document says so."""

    text: str
    ends_document: bool


class Answer(NamedTuple):
    """A part of a context, which begins at the character `begin`."""

    text: str
    begin: int


class Record(NamedTuple):
    """One record of a task other than language modelling.

    `texts` are what the task reads and writes, in the order of its fields; `place` is for `place_name`; `group` is what data
    sets are not to be divided within.
    """

    place: int
    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    question_id: str = ""
    group: str = ""

    @property
    def has_all_texts(self) -> bool:
        """Whether each text has more than white space; other records are left out, as such documents are."""
        return all(text and not text.isspace() for text in self.texts)


def read_pieces(span: Span, reading: Reading, report: ReadingReport | None = None) -> Iterator[Piece]:
    """The documents of a span in pieces of bounded length, in which personal data are masked where that is asked for; what
    is found is added to the `report`. Documents without text are left out, and those that are to be dropped."""
    rule = reading.personal_data
    if reading.format == "text":
        # A piece ends with a line, so nothing that is looked for lies in two, but where a line is longer than a piece.
        pieces = _running_text(span)
        found = None if report is None else report.personal_data
        return pieces if rule is None else (_clean_piece(piece, rule, found) for piece in pieces)
    screen, documents = _Screen(span, reading, report), enumerate(_documents(span, reading))
    screened = (text for number, each in documents for text in screen.texts(number, (each,)) or ())
    return (piece for text in screened if text.strip() for piece in _cut(text))


def _documents(span: Span, reading: Reading) -> Iterator[str]:
    """All documents of a span, each whole, in formats that have several in a file."""
    (column,) = reading.columns
    if reading.format == "lines":
        return (text for _, text in text_lines(span))
    if reading.format == "jsonl":
        return json_texts(span, str(column.column))
    return (values[0] for _, values in _rows(span, reading))


class _Screen:
    """What becomes of the texts of a span: which are left out, and what is not to be in the others."""

    def __init__(self, span: Span, reading: Reading, report: ReadingReport | None) -> None:
        listed = (numbers for path, begin, numbers in reading.duplicates if (path, begin) == (span.path, span.begin))
        self._duplicates = frozenset(number for numbers in listed for number in numbers)
        self._index = None if reading.overlap is None else _overlap_index(reading.overlap, unscreened(reading))
        self._personal_data, self._report = reading.personal_data, report or ReadingReport()

    def texts(self, number: int, texts: tuple[str, ...]) -> tuple[str, ...] | None:
        """Of the `number`-th record; None where it is left out."""
        if number in self._duplicates:
            return None
        if self._index is not None and overlapping(texts, self._index, self._report.overlap):
            return None
        return texts if self._personal_data is None else clean(texts, self._personal_data, self._report.personal_data)


@functools.lru_cache(maxsize=1)
def _overlap_index(rule: OverlapRule, reading: Reading) -> OverlapIndex:
    """Once a process."""
    return OverlapIndex.of((text for span in rule.evaluated for texts in whole_texts(span, reading) for text in texts), rule)


def unscreened(reading: Reading) -> Reading:
    """With nothing left out or masked."""
    return replace(reading, personal_data=None, overlap=None, duplicates=())


def whole_texts(span: Span, reading: Reading) -> Iterator[tuple[str, ...]]:
    """The texts of each record of a span, or each of its documents, whole."""
    if reading.is_of_documents:
        yield from ((document,) for document in _documents(span, reading))
    else:
        yield from (record.texts for record in read_records(span, reading))


def read_records(span: Span, reading: Reading, report: ReadingReport | None = None) -> Iterator[Record]:
    """The records of a span, in whose texts personal data are masked where that is asked for; what is found is added to the
    `report`. None are left out but those that are dropped for it, or since an evaluation has them. Raises DataError for one
    that is not what the task needs."""
    fields = [column.field for column in reading.columns]
    texts = [column for column, field in enumerate(fields) if field in TEXT_FIELDS]
    screen = _Screen(span, reading, report)
    for number, (place, values) in enumerate(_rows(span, reading)):
        record = Record(place, tuple([values[column] for column in texts]))
        try:
            _check_texts(record.texts, reading)
            if reading.task == "classification":
                record = record._replace(labels=_labels(values[fields.index("label")], reading))
            elif reading.task == "question_answering":
                identity = values[3] if reading.format == "squad" else ""
                record = record._replace(answers=_answers(values[2], record.texts[0]), question_id=identity)
            if "group" in fields:
                record = record._replace(group=str(values[fields.index("group")]))
        except ValueError as error:
            where = place_name(span, reading, place)
            raise DataError(f"{where}: {error}; mend or leave out that record") from None
        screened = screen.texts(number, record.texts)
        if screened is not None:
            yield record if screened is record.texts else record._replace(texts=screened)


def place_name(span: Span, reading: Reading, place: int) -> str:
    """Where a record is, for complaints; reads the file up to there where only the offset is known."""
    if reading.format in ("jsonl", "tsv"):
        place = line_number(span.path, place)
    if reading.format == "parquet":
        return f"{span.path}: row {place} (from 0)"
    if reading.format == "squad":
        return f"{span.path}: question {place} (from 0)"
    return f"{span.path}:{place}"


def digest(span: Span, reading: Reading) -> str:
    """The sha256 of the bytes that a span is read from; of its second file the span `target` has its own."""
    is_parquet = reading.format == "parquet"
    hasher = hashlib.sha256()
    with open(span.path, "rb") as file:
        for begin, end in parquet_byte_ranges(span, reading.columns) if is_parquet else [(span.begin, span.end)]:
            file.seek(begin)
            while begin < end and (block := file.read(min(BLOCK_BYTES, end - begin))):
                hasher.update(block)
                begin += len(block)
    return hasher.hexdigest()


def _rows(span: Span, reading: Reading) -> Iterator[Row]:
    if reading.format == "jsonl":
        return json_rows(span, reading.columns)
    if reading.format == "csv":
        return csv_rows(span, reading.columns)
    if reading.format == "tsv":
        return tsv_rows(span, reading.columns)
    if reading.format == "squad":
        return squad_rows(span)
    if reading.format == "lines":
        return _line_pairs(span)
    return parquet_rows(span, reading.columns)


def _line_pairs(span: Span) -> Iterator[Row]:
    """Lines that belong together, each pair with its number from 1; raises DataError where one file has more lines."""
    assert span.target is not None
    sources, targets = text_lines(span), text_lines(span.target)
    for number, (source, target) in enumerate(zip_longest(sources, targets), 1):
        if source is None or target is None:
            num_sources = number - 1 + (source is not None) + sum(1 for _ in sources)
            num_targets = number - 1 + (target is not None) + sum(1 for _ in targets)
            raise DataError(
                f"{span.path} has {num_sources:,} lines and {span.target.path} {num_targets:,}; line n of the one must be "
                "the translation of line n of the other: mend the files"
            )
        yield number, (source[1], target[1])


def _check_texts(texts: tuple[str, ...], reading: Reading) -> None:
    """Raises ValueError where one is no text, as can be in JSON."""
    if reading.format not in ("jsonl", "squad"):
        return
    for number, text in enumerate(texts):
        if not isinstance(text, str) or is_broken(text):
            column = [each for each in reading.columns if each.field in TEXT_FIELDS][number].column
            raise ValueError(f"field {column!r} is {got(text)}, expected text")


def _labels(value: Any, reading: Reading) -> tuple[str, ...]:
    """The names of a record's classes; raises ValueError for what cannot be any."""
    if not reading.multi_label:
        label = _label(value)
        if not label:
            raise ValueError("has no label")
        return (label,)
    if reading.format in ("csv", "tsv"):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list):
        raise ValueError(f"the label is {value!r}, expected a list of labels where data.multi_label is set")
    return tuple(dict.fromkeys(_label(each) for each in value))


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # As tables have whole numbers where a value is missing elsewhere.
    if not isinstance(value, str | int):
        several = "; for several a text set data.multi_label" if isinstance(value, list) else ""
        raise ValueError(f"the label is {value!r}, expected a text or a whole number{several}")
    return str(value).strip()


def _answers(value: Any, context: str) -> tuple[Answer, ...]:
    """Answers as SQuAD has them, as Hugging Face's data sets have them (lists `text` and `answer_start`), or as bare texts,
    which stand for where the context has them first. Raises ValueError for one that is not in the context."""
    if isinstance(value, dict):
        if not isinstance(value.get("text"), list) or not isinstance(value.get("answer_start"), list):
            raise ValueError(f"the answers are an object of {', '.join(value)}, expected lists `text` and `answer_start`")
        value = list(zip(value["text"], value["answer_start"], strict=True))
    found = [_answer(each, context) for each in (value if isinstance(value, list) else [value])]
    return tuple(answer for answer in found if answer.text)


def _answer(value: Any, context: str) -> Answer:
    if isinstance(value, dict):
        value = (value.get("text"), value.get("answer_start"))
    if isinstance(value, str):
        begin = context.find(value)
        if begin < 0:
            raise ValueError(f"the answer {value[:40]!r} is not in the context")
        return Answer(value, begin)
    if not isinstance(value, tuple) or not isinstance(value[0], str) or not isinstance(value[1], int):
        raise ValueError(f"the answer is {value!r}"[:80] + ", expected a text, and the character it begins at")
    text, begin = value
    if begin < 0 or context[begin : begin + len(text)] != text:
        raise ValueError(f"the context has {context[max(0, begin) :][: len(text)]!r}"[:80] + f" at {begin}, not {text[:40]!r}")
    return Answer(text, begin)


def _clean_piece(piece: Piece, rule: PersonalDataRule, report: PersonalDataReport | None) -> Piece:
    cleaned = clean((piece.text,), rule, report)
    assert cleaned is not None, "the configuration refuses to drop files"
    return piece._replace(text=cleaned[0])


def _cut(text: str) -> Iterator[Piece]:
    """Cuts a long document after the last line end that fits into a piece."""
    begin = 0
    while len(text) - begin > PIECE_LENGTH:
        end = text.rfind("\n", begin, begin + PIECE_LENGTH) + 1 or begin + PIECE_LENGTH
        yield Piece(text[begin:end], ends_document=False)
        begin = end
    yield Piece(text[begin:] if begin else text, ends_document=True)


def _running_text(span: Span) -> Iterator[Piece]:
    """All of a span as one document, in pieces."""
    with open_span(span) as file:
        offset, carry = span.begin, b""
        held: str | None = None
        while block := _read_block(file, span, offset + len(carry)):
            data = carry + block
            cut = data.rfind(b"\n") + 1 or _last_character_end(data)
            if cut:
                if held:
                    yield Piece(held, ends_document=False)
                held = decode(data[:cut], span.path, offset)
            offset, carry = offset + cut, data[cut:]
        if carry:
            if held:
                yield Piece(held, ends_document=False)
            held = decode(carry, span.path, offset)
        # Only here is it known which piece was the last one.
        if held:
            yield Piece(held, span.ends_document)


def _read_block(file: BinaryIO, span: Span, offset: int) -> bytes:
    limit = PIECE_LENGTH if compression_of(span.path) else min(PIECE_LENGTH, span.end - offset)
    return checked_read(file, span.path, limit)


def _last_character_end(data: bytes) -> int:
    """Where the last whole UTF-8 character ends: of what follows some bytes are in the next block."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if length > back else len(data)
    return len(data)
