"""Makes one part of a token store from one unit of input: an Arrow file, and beside it a record of what it came from.

This is what the processes of `prepare` run: it holds one piece of text and one record batch of tokens in memory.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.data.manifest import (
    TOKENIZER_NAME,
    InputRange,
    Part,
)
from trainer.data.readers import Piece, digest, read_pieces
from trainer.data.sources import Span, Unit
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError
from trainer.files import file_sha256, json_bytes, put_in_place, temporary_name, write_atomically

# Of a record batch: a few megabytes, whatever the length of documents.
BATCH_TOKENS = 2**20

# Of one call of the tokenizer.
CALL_CHARACTERS = 256 * 2**10


@dataclass(frozen=True)
class PartPlan:
    """One unit of work: which part of the store to make from what. `file` is relative to the store."""

    file: str
    unit: Unit
    format: str
    text_field: str | int


@dataclass(frozen=True)
class PartRecord:
    """What stands beside a part: it was made by this plan, with this tokenizer, from inputs of these hashes."""

    part: Part
    plan: PartPlan
    tokenizer_fingerprint: str
    sha256s: tuple[str, ...]

    @property
    def inputs(self) -> Iterator[InputRange]:
        for span, sha256 in zip(self.plan.unit.spans, self.sha256s, strict=True):
            yield InputRange(span.path, span.size, span.begin, span.end, sha256)


def record_path(store: Path, plan: PartPlan) -> Path:
    return (store / plan.file).with_suffix(".json")


def num_documents_of(plan: PartPlan) -> int:
    """Reads all that a part will be made of, and so finds every fault in it before anything is written.

    Counts documents that end in it and documents that go on after it.
    """
    num_documents = 0
    for span in plan.unit.spans:
        piece = Piece("", ends_document=True)
        for piece in read_pieces(span, plan.format, plan.text_field):
            num_documents += piece.ends_document
        num_documents += not piece.ends_document
    return num_documents


def write_part(store: Path, plan: PartPlan, tokenizer_fingerprint: str) -> PartRecord:
    """Encodes a unit. The Arrow file appears whole, and its record after it."""
    tokenizer = _load_tokenizer(store / TOKENIZER_NAME, tokenizer_fingerprint)
    path = store / plan.file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        num_documents, num_tokens = _write_arrow(temporary, plan, tokenizer)
        sha256s = tuple(digest(span, plan.format, plan.text_field) for span in plan.unit.spans)
        for span in plan.unit.spans:
            _check_unchanged(span)
        part = Part(plan.file, num_documents, num_tokens, temporary.stat().st_size, file_sha256(temporary))
        # Were it interrupted between the two, an earlier record would vouch for a file that it does not know.
        record_path(store, plan).unlink(missing_ok=True)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    record = PartRecord(part, plan, tokenizer_fingerprint, sha256s)
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
    for before, now, sha256 in zip(record.plan.unit.spans, plan.unit.spans, record.sha256s, strict=True):
        if before.modified_ns != now.modified_ns and digest(now, plan.format, plan.text_field) != sha256:
            return None
    return record


def token_dtype(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary_size <= 2**16 else np.uint32


@functools.lru_cache(maxsize=1)
def _load_tokenizer(path: Path, fingerprint: str) -> Tokenizer:
    """Once a process; the fingerprint is checked, since another process may have put another tokenizer there."""
    tokenizer = Tokenizer.load(path)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"{path}: was changed by someone else meanwhile; let one prepare run at a time")
    return tokenizer


def _write_arrow(path: Path, plan: PartPlan, tokenizer: Tokenizer) -> tuple[int, int]:
    """One column `tokens`, a row for each document or piece of one; returns the numbers of documents and tokens."""
    dtype = token_dtype(tokenizer.vocabulary_size)
    kind = pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
    schema = pa.schema([pa.field("tokens", kind, nullable=False)])
    num_documents = num_tokens = 0
    with path.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for rows in _row_batches(plan, tokenizer, dtype):
                values = np.concatenate(rows)
                offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
                tokens = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values), type=kind)
                writer.write_batch(pa.record_batch([tokens], schema=schema))
                num_documents += sum(int(row[-1]) == tokenizer.end_of_text for row in rows)
                num_tokens += len(values)
        file.flush()
        os.fsync(file.fileno())
    return num_documents, num_tokens


def _row_batches(plan: PartPlan, tokenizer: Tokenizer, dtype: type[Any]) -> Iterator[list[npt.NDArray[Any]]]:
    rows: list[npt.NDArray[Any]] = []
    num_tokens = 0
    for pieces in _calls(plan):
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


def _calls(plan: PartPlan) -> Iterator[list[Piece]]:
    """Pieces by as many as are tokenized in one call."""
    pieces: list[Piece] = []
    num_characters = 0
    for span in plan.unit.spans:
        for piece in read_pieces(span, plan.format, plan.text_field):
            pieces.append(piece)
            num_characters += len(piece.text)
            if num_characters >= CALL_CHARACTERS:
                yield pieces
                pieces, num_characters = [], 0
    if pieces:
        yield pieces


def _check_unchanged(span: Span) -> None:
    status = os.stat(span.path)
    if (status.st_size, status.st_mtime_ns) != (span.size, span.modified_ns):
        raise DataError(f"{span.path}: changed while it was being read; run drumline prepare again once it is complete")


def _timeless(plan: PartPlan) -> PartPlan:
    return replace(plan, unit=Unit(tuple(replace(span, modified_ns=0) for span in plan.unit.spans)))


def _record_of(content: dict[str, Any]) -> PartRecord:
    plan = content["plan"]
    spans = tuple(Span(**span) for span in plan["unit"]["spans"])
    return PartRecord(
        part=Part(**content["part"]),
        plan=PartPlan(plan["file"], Unit(spans), plan["format"], plan["text_field"]),
        tokenizer_fingerprint=content["tokenizer_fingerprint"],
        sha256s=tuple(content["sha256s"]),
    )
