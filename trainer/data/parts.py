"""Makes one part of a token store from one unit of input: an Arrow file, and beside it a record of what it came from.

This is what the processes of `prepare` run: it holds one piece of text and one record batch of tokens in memory.
"""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.config import SecurityConfig
from trainer.data.back_translations import BackTranslationsFile, read_back_translations
from trainer.data.columns import RecordEncoder, columns_of, token_dtype
from trainer.data.duplicates import Signatures, signatures_of
from trainer.data.manifest import TOKENIZER_NAME, InputRange, Part
from trainer.data.overlap import OverlapReport, rule_of
from trainer.data.personal_data import PersonalDataReport, PersonalDataRule
from trainer.data.readers import (
    Piece,
    Reading,
    ReadingReport,
    Record,
    digest,
    read_pieces,
    read_records,
    unscreened,
    whole_texts,
)
from trainer.data.sources import Span, Unit
from trainer.data.tables import FieldColumn
from trainer.data.tokenizer import Tokenizer
from trainer.encryption.files import Encryption
from trainer.errors import DataError
from trainer.files import json_bytes, put_in_place, temporary_name, write_atomically

# Of a record batch: a few megabytes, whatever the length of documents.
BATCH_TOKENS = 2**20

# Of one call of the tokenizer.
CALL_CHARACTERS = 256 * 2**10


@dataclass(frozen=True)
class PartPlan:
    """One unit of work: which part of the store to make from what. `file` is relative to the store.

    `labels` are the classes in the order of their numbers, empty where the task has none or they are not yet known.
    """

    file: str
    unit: Unit
    reading: Reading
    labels: tuple[str, ...] = ()
    back_translations: BackTranslationsFile | None = None
    is_encrypted: bool = False

    @property
    def is_training(self) -> bool:
        return self.file.startswith("train/")


@dataclass(frozen=True)
class PartRecord:
    """What stands beside a part: it was made by this plan, with this tokenizer, from inputs of these hashes (one a file), and
    had these personal data in it; so many texts were left out, since evaluations have them."""

    part: Part
    plan: PartPlan
    tokenizer_fingerprint: str
    sha256s: tuple[str, ...]
    personal_data: PersonalDataReport = field(default_factory=PersonalDataReport)
    overlap: OverlapReport = field(default_factory=OverlapReport)

    @property
    def inputs(self) -> Iterator[InputRange]:
        for file, sha256 in zip(self.plan.unit.files, self.sha256s, strict=True):
            yield InputRange(file.path, file.size, file.begin, file.end, sha256)


@dataclass
class PartCheck:
    """What a part will be made of: documents or records, those without text that are left out, those that there is a
    back-translation for, and the labels, each with the place where it comes first."""

    num_documents: int = 0
    num_left_out: int = 0
    num_back_translated: int = 0
    labels: dict[str, tuple[Span, int]] = field(default_factory=dict)


def record_path(store: Path, plan: PartPlan) -> Path:
    return (store / plan.file).with_suffix(".json")


def check_part(plan: PartPlan) -> PartCheck:
    """Reads all that a part will be made of, and so finds every fault in it before anything is written.

    Counts documents that end in it and documents that go on after it.
    """
    check, reading = PartCheck(), plan.reading
    if reading.personal_data is not None and reading.personal_data.action == "mask":
        reading = replace(reading, personal_data=None)  # the same is there, whether it is masked or not
    if reading.is_of_documents:
        for span in plan.unit.spans:
            piece = Piece("", ends_document=True)
            for piece in read_pieces(span, reading):
                check.num_documents += piece.ends_document
            check.num_documents += not piece.ends_document
        return check
    back_translations = _back_translations(plan) or {}
    for span in plan.unit.spans:
        for record in read_records(span, reading):
            if not record.has_all_texts:
                check.num_left_out += 1
                continue
            check.num_documents += 1
            check.num_back_translated += record.texts[0] in back_translations
            for label in record.labels:
                if label not in check.labels:
                    check.labels[label] = (span, record.place)
    return check


def signatures_of_part(plan: PartPlan, *, is_near: bool) -> Signatures:
    """What tells the texts of a part apart, of which nothing is left out yet."""
    reading = unscreened(plan.reading)
    return signatures_of(plan.file, ((span, whole_texts(span, reading)) for span in plan.unit.spans), is_near=is_near)


def texts_of(plan: PartPlan) -> Iterator[str]:
    """All texts of a part that a tokenizer learns from, in order."""
    for span in plan.unit.spans:
        if plan.reading.is_of_documents:
            yield from (piece.text for piece in read_pieces(span, plan.reading))
        else:
            yield from (text for record in read_records(span, plan.reading) if record.has_all_texts for text in record.texts)


def write_part(store: Path, plan: PartPlan, tokenizer_fingerprint: str, security: SecurityConfig) -> PartRecord:
    """Encodes a unit. The Arrow file appears whole, and its record, which is not encrypted, after it."""
    encryption = Encryption.of(security)
    tokenizer = _load_tokenizer(store / TOKENIZER_NAME, tokenizer_fingerprint, encryption)
    path = store / plan.file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, report = temporary_name(path), ReadingReport()
    try:
        write = _write_documents if plan.reading.is_of_documents else _write_records
        with encryption.new_file(temporary, plan.file) as output:
            num_documents, num_tokens = write(output, plan, tokenizer, report)
        sha256s = tuple(digest(file, plan.reading) for file in plan.unit.files)
        for file in plan.unit.files:
            _check_unchanged(file)
        part = Part(
            plan.file,
            num_documents,
            num_tokens,
            temporary.stat().st_size,
            encryption.sha256_of_new(output, temporary, plan.file),
        )
        # Were it interrupted between the two, an earlier record would vouch for a file that it does not know.
        record_path(store, plan).unlink(missing_ok=True)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if plan.is_encrypted:
        report = report.without_examples()
    record = PartRecord(part, plan, tokenizer_fingerprint, sha256s, report.personal_data, report.overlap)
    write_atomically(record_path(store, plan), json_bytes(asdict(record)))
    return record


def whole_part(store: Path, plan: PartPlan, tokenizer_fingerprint: str) -> PartRecord | None:
    """The record of a part that is there already and is what would be made again; otherwise None.

    Where only the time of an input has changed its contents decide.
    """
    try:
        record = _record_of(json.loads(record_path(store, plan).read_bytes()))
        num_bytes = (store / plan.file).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = record.tokenizer_fingerprint == tokenizer_fingerprint and record.part.num_bytes == num_bytes
    if not same or _timeless(record.plan) != _timeless(plan):
        return None
    for before, now, sha256 in zip(record.plan.unit.files, plan.unit.files, record.sha256s, strict=True):
        if before.modified_ns != now.modified_ns and digest(now, plan.reading) != sha256:
            return None
    return record


@functools.lru_cache(maxsize=1)
def _load_tokenizer(path: Path, fingerprint: str, encryption: Encryption) -> Tokenizer:
    """Once a process; the fingerprint is checked, since another process may have put another tokenizer there."""
    tokenizer = Tokenizer.load(path, encryption)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"{path}: was changed by someone else meanwhile; let one prepare run at a time")
    return tokenizer


def _write_documents(file: io.RawIOBase, plan: PartPlan, tokenizer: Tokenizer, report: ReadingReport) -> tuple[int, int]:
    """A row for each document or piece of one; returns the numbers of documents and tokens."""
    dtype = token_dtype(tokenizer.vocabulary_size)
    schema = columns_of(plan.reading, has_back_translations=False).schema(dtype)
    num_documents = num_tokens = 0
    with pa.ipc.new_file(file, schema) as writer:
        for rows in _row_batches(plan, tokenizer, dtype, report):
            values = np.concatenate(rows)
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
            kind = schema.field("tokens").type
            tokens = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values), type=kind)
            writer.write_batch(pa.record_batch([tokens], schema=schema))
            num_documents += sum(int(row[-1]) == tokenizer.end_of_text for row in rows)
            num_tokens += len(values)
    return num_documents, num_tokens


def _write_records(file: io.RawIOBase, plan: PartPlan, tokenizer: Tokenizer, report: ReadingReport) -> tuple[int, int]:
    """A row for each record that has text; returns the numbers of records and of tokens in all columns."""
    encoder = RecordEncoder(plan.reading, tokenizer, plan.labels, plan.is_training, _back_translations(plan))
    num_records = num_tokens = 0
    with pa.ipc.new_file(file, encoder.schema) as writer:
        for records in _record_calls(plan, report):
            encoder.add(records)
            num_records += len(records)
            if encoder.num_tokens >= BATCH_TOKENS:
                num_tokens += encoder.num_tokens
                writer.write_batch(encoder.take())
        num_tokens += encoder.num_tokens
        writer.write_batch(encoder.take())
    return num_records, num_tokens


def _row_batches(
    plan: PartPlan, tokenizer: Tokenizer, dtype: type[Any], report: ReadingReport
) -> Iterator[list[npt.NDArray[Any]]]:
    rows: list[npt.NDArray[Any]] = []
    num_tokens = 0
    for pieces in _piece_calls(plan, report):
        for piece, ids in zip(pieces, tokenizer.encode_batch([piece.text for piece in pieces]), strict=True):
            row = np.append(ids, tokenizer.end_of_text) if piece.ends_document else ids
            if len(row):
                rows.append(row.astype(dtype))
                num_tokens += len(row)
        if num_tokens >= BATCH_TOKENS:
            yield rows
            rows, num_tokens = [], 0
    if rows:
        yield rows


def _piece_calls(plan: PartPlan, report: ReadingReport) -> Iterator[list[Piece]]:
    """Pieces by as many as are tokenized in one call."""
    pieces: list[Piece] = []
    num_characters = 0
    for span in plan.unit.spans:
        for piece in read_pieces(span, plan.reading, report):
            pieces.append(piece)
            num_characters += len(piece.text)
            if num_characters >= CALL_CHARACTERS:
                yield pieces
                pieces, num_characters = [], 0
    if pieces:
        yield pieces


def _record_calls(plan: PartPlan, report: ReadingReport) -> Iterator[list[Record]]:
    """Records by as many as are tokenized in one call."""
    records: list[Record] = []
    num_characters = 0
    for span in plan.unit.spans:
        for record in read_records(span, plan.reading, report):
            if record.has_all_texts:
                records.append(record)
                num_characters += sum(map(len, record.texts))
            if num_characters >= CALL_CHARACTERS:
                yield records
                records, num_characters = [], 0
    if records:
        yield records


def _back_translations(plan: PartPlan) -> Mapping[str, str] | None:
    return None if plan.back_translations is None else read_back_translations(plan.back_translations)


def _check_unchanged(span: Span) -> None:
    status = os.stat(span.path)
    if (status.st_size, status.st_mtime_ns) != (span.size, span.modified_ns):
        raise DataError(f"{span.path}: changed while it was being read; run drumline prepare again once it is complete")


def timeless(span: Span) -> Span:
    """The same range of a file, whenever that was written."""
    return replace(span, modified_ns=0, target=span.target and timeless(span.target))


def _timeless(plan: PartPlan) -> PartPlan:
    return replace(plan, unit=Unit(tuple(map(timeless, plan.unit.spans))))


def _record_of(content: dict[str, Any]) -> PartRecord:
    def span_of(span: dict[str, Any]) -> Span:
        return Span(**{**span, "target": span_of(span["target"]) if span.get("target") else None})

    plan = content["plan"]
    if "text_field" in plan:  # Before there were other tasks than language modelling.
        reading = Reading("language_modeling", plan["format"], (FieldColumn("text", plan["text_field"]),))
    else:
        columns = tuple(FieldColumn(*column) for column in plan["reading"]["columns"])
        rule = plan["reading"].get("personal_data")
        rule = rule and PersonalDataRule(rule["action"], tuple(rule["kinds"]), rule.get("language_model"))
        overlap = plan["reading"].get("overlap")
        overlap = overlap and rule_of(overlap, [span_of(span) for span in overlap["evaluated"]])
        duplicates = tuple((path, begin, tuple(numbers)) for path, begin, numbers in plan["reading"].get("duplicates", ()))
        rules = {"personal_data": rule, "overlap": overlap, "duplicates": duplicates}
        reading = Reading(**{**plan["reading"], "columns": columns, **rules})
    back_translations = plan.get("back_translations")
    return PartRecord(
        part=Part(**content["part"]),
        plan=PartPlan(
            file=plan["file"],
            unit=Unit(tuple(span_of(span) for span in plan["unit"]["spans"])),
            reading=reading,
            labels=tuple(plan.get("labels", ())),
            back_translations=back_translations and BackTranslationsFile(**back_translations),
            is_encrypted=plan.get("is_encrypted", False),
        ),
        tokenizer_fingerprint=content["tokenizer_fingerprint"],
        sha256s=tuple(content["sha256s"]),
        personal_data=PersonalDataReport(**content.get("personal_data", {})),
        overlap=OverlapReport(**content.get("overlap", {})),
    )
