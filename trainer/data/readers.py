"""Reads documents from a span of an input file, whatever its format and compression, with every complaint's place.

Everything streams: memory is bounded by the longest record, and for running text by the length of a piece.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.sources import Span, compression_of, one_line
from trainer.errors import DataError

# Text goes through the tokenizer in pieces that end with a line where they can. Pieces of this size are tokenized a
# quarter faster than those of a mebibyte, which no longer fit the processor's caches.
PIECE_LENGTH = 256 * 2**10

BLOCK_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Piece(NamedTuple):
    """Some text of a document, in order; the last piece of each document says so."""

    text: str
    ends_document: bool


def read_pieces(span: Span, file_format: str, text_field: str | int) -> Iterator[Piece]:
    """The documents of a span in pieces of bounded length. Records without text are left out."""
    if file_format == "text":
        return _running_text(span)
    if file_format == "lines":
        documents: Iterator[str] = (text for _, text in _text_lines(span))
    elif file_format == "jsonl":
        documents = _json_documents(span, cast(str, text_field))
    elif file_format == "csv":
        documents = _csv_documents(span, text_field)
    elif file_format == "tsv":
        documents = _tsv_documents(span, text_field)
    else:
        documents = _parquet_documents(span, cast(str, text_field))
    return (piece for text in documents if text.strip() for piece in _cut(text))


def digest(span: Span, file_format: str, text_field: str | int) -> str:
    """The sha256 of the bytes that a span is read from."""
    hasher = hashlib.sha256()
    with open(span.path, "rb") as file:
        for begin, end in _byte_ranges(span, file_format, text_field):
            file.seek(begin)
            while begin < end and (block := file.read(min(BLOCK_BYTES, end - begin))):
                hasher.update(block)
                begin += len(block)
    return hasher.hexdigest()


def _byte_ranges(span: Span, file_format: str, text_field: str | int) -> Iterator[tuple[int, int]]:
    if file_format != "parquet":
        yield span.begin, span.end
        return
    with _open_parquet(span.path) as file:
        column_number = _text_column(file, span.path, cast(str, text_field))
        for group_number, _ in _row_groups(file, span):
            column = file.metadata.row_group(group_number).column(column_number)
            begin = column.dictionary_page_offset or column.data_page_offset
            yield begin, begin + column.total_compressed_size


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
    with _open(span) as file:
        offset, carry = span.begin, b""
        held: str | None = None
        while block := _read_block(file, span, offset + len(carry)):
            data = carry + block
            cut = data.rfind(b"\n") + 1 or _last_character_end(data)
            if cut:
                if held:
                    yield Piece(held, ends_document=False)
                held = _decode(data[:cut], span.path, offset)
            offset, carry = offset + cut, data[cut:]
        if carry:
            if held:
                yield Piece(held, ends_document=False)
            held = _decode(carry, span.path, offset)
        # Only here is it known which piece was the last one.
        if held:
            yield Piece(held, span.ends_document)


def _read_block(file: BinaryIO, span: Span, offset: int) -> bytes:
    limit = PIECE_LENGTH if compression_of(span.path) else min(PIECE_LENGTH, span.end - offset)
    return _checked_read(file, span.path, limit)


def _last_character_end(data: bytes) -> int:
    """Where the last whole UTF-8 character ends: of what follows some bytes are in the next block."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if length > back else len(data)
    return len(data)


def _byte_lines(span: Span) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in a span, each with its offset and its line end; of compressed files all."""
    compressed = compression_of(span.path) is not None
    with _open(span) as file:
        offset = span.begin
        while compressed or offset < span.end:
            try:
                line = file.readline()
            except OSError as error:
                raise _unreadable(span.path, error) from None
            if not line:
                return
            yield offset, line
            offset += len(line)


def _text_lines(span: Span) -> Iterator[tuple[int, str]]:
    for offset, line in _byte_lines(span):
        yield offset, _decode(line, span.path, offset).rstrip("\r\n")


def _json_documents(span: Span, field: str) -> Iterator[str]:
    for offset, line in _text_lines(span):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            where = f"{span.path}:{_line_number(span.path, offset)}"
            raise DataError(f"{where}: is not JSON ({one_line(error)}); expected an object a line") from None
        if not isinstance(record, dict) or not isinstance(text := record.get(field), str) or _is_broken(text):
            raise _no_text(f"{span.path}:{_line_number(span.path, offset)}", record, field)
        yield text


def _no_text(where: str, record: Any, field: str) -> DataError:
    if not isinstance(record, dict):
        return DataError(f"{where}: got a JSON {type(record).__name__}, expected an object with a field {field!r}")
    if field not in record:
        return DataError(f"{where}: has no field {field!r}; it has {', '.join(record)}: set data.fields.text to one of them")
    got = "text with half a surrogate pair" if isinstance(record[field], str) else json.dumps(record[field])[:40]
    return DataError(f"{where}: field {field!r} is {got}, expected text; mend or leave out that line")


def _is_broken(text: str) -> bool:
    r"""Whether escapes like \ud83d stand alone, which JSON allows and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _csv_documents(span: Span, field: str | int) -> Iterator[str]:
    """Rows as RFC 4180 has them, with line ends inside quotes; those that begin within the span count.

    Whether a line begins a row is known only from the file's first byte on, so reading always begins there.
    """
    next_offset = 0

    def lines() -> Iterator[str]:
        nonlocal next_offset
        for offset, line in _byte_lines(Span(span.path, span.size, span.modified_ns, 0, span.size)):
            next_offset = offset + len(line)
            yield _decode(line, span.path, offset)

    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(lines(), strict=True)
    column = field if isinstance(field, int) else None
    compressed = compression_of(span.path) is not None
    try:
        while compressed or next_offset < span.end:
            offset, line_number = next_offset, rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return
            where = f"{span.path}:{line_number}"
            if column is None:
                column = _column_number(row, cast(str, field), where)
            elif row and (compressed or offset >= span.begin):
                yield _cell(row, column, where)
    except csv.Error as error:
        raise DataError(f"{span.path}:{rows.line_num}: is not CSV ({one_line(error)}); mend that line") from None


def _tsv_documents(span: Span, field: str | int) -> Iterator[str]:
    """Rows of fields between tabs. IANA's text/tab-separated-values has no quotes, so any line begins a row."""
    column = field if isinstance(field, int) else _tsv_header_column(span, field)
    for offset, line in _text_lines(span):
        is_header = offset == 0 and not isinstance(field, int)
        if line and not is_header:
            row = line.split("\t")
            yield (row[column] if column < len(row) else _cell(row, column, f"{span.path}:{_line_number(span.path, offset)}"))


def _tsv_header_column(span: Span, field: str) -> int:
    for _, line in _text_lines(Span(span.path, span.size, span.modified_ns, 0, span.size)):
        return _column_number(line.split("\t"), field, f"{span.path}:1")
    raise DataError(f"{span.path}: is empty, expected a header line")


def _column_number(header: list[str], field: str, where: str) -> int:
    if field not in header:
        raise DataError(
            f"{where}: has no column {field!r}; it has {', '.join(header)}: set data.fields.text to one of them, "
            "or to a column number from 0 where there is no header line"
        )
    return header.index(field)


def _cell(row: list[str], column: int, where: str) -> str:
    if column >= len(row):
        raise DataError(f"{where}: has {len(row)} columns, expected a text in column {column} (from 0); mend that line")
    return row[column]


def _parquet_documents(span: Span, field: str) -> Iterator[str]:
    with _open_parquet(span.path) as file:
        _text_column(file, span.path, field)
        try:
            for group_number, first_row in _row_groups(file, span):
                row = first_row
                for batch in file.iter_batches(256, row_groups=[group_number], columns=[field], use_threads=False):
                    for text in batch.column(0).to_pylist():
                        if span.begin <= row < span.end:
                            if text is None:
                                raise DataError(f"{span.path}: row {row} (from 0) has no {field!r}; mend or leave out that row")
                            yield text
                        row += 1
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise _unreadable(span.path, error) from None


def _open_parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _text_column(file: pq.ParquetFile, path: str, field: str) -> int:
    """The number of the column that holds the text."""
    schema = file.schema_arrow
    if field not in schema.names:
        raise DataError(
            f"{path}: has no column {field!r}; it has {', '.join(schema.names)}: set data.fields.text to one of them"
        )
    kind = schema.field(field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(
            f"{path}: column {field!r} is of type {kind}, expected string; set data.fields.text to a column of text"
        )
    return [file.schema.column(number).path for number in range(len(file.schema))].index(field)


def _row_groups(file: pq.ParquetFile, span: Span) -> Iterator[tuple[int, int]]:
    """The row groups that hold rows of a span, each with the number of its first row."""
    first_row = 0
    for number in range(file.metadata.num_row_groups):
        num_rows = file.metadata.row_group(number).num_rows
        if first_row < span.end and first_row + num_rows > span.begin:
            yield number, first_row
        first_row += num_rows


def _open(span: Span) -> BinaryIO:
    """A span's file, at its begin; compressed files, also of several members, as what they hold."""
    compression = compression_of(span.path)
    try:
        if compression is None:
            file = open(span.path, "rb", buffering=BLOCK_BYTES)  # noqa: SIM115
            file.seek(span.begin)
            return file
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(span.path, compression=compression), BLOCK_BYTES))
    except OSError as error:
        raise _unreadable(span.path, error) from None


def _checked_read(file: BinaryIO, path: str, limit: int) -> bytes:
    try:
        return file.read(limit)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({one_line(error)}); is it damaged, or not what its name says?")


def _decode(data: bytes, path: str, offset: int) -> str:
    """UTF-8 to text. A byte order mark at the start of a file is not part of its text."""
    try:
        return data.removeprefix(BYTE_ORDER_MARK).decode() if offset == 0 else data.decode()
    except UnicodeDecodeError as error:
        mark = len(BYTE_ORDER_MARK) if offset == 0 and data.startswith(BYTE_ORDER_MARK) else 0
        place = offset + mark + error.start
        raise DataError(
            f"{path}:{_line_number(path, place)}: byte 0x{error.object[error.start]:02x} at offset {place} "
            "is not UTF-8; convert the file, for instance with iconv, or check data.format"
        ) from None


def _line_number(path: str, offset: int) -> int:
    """The line, from 1, that holds a byte (of a compressed file, of what it holds); read for complaints only."""
    number, left = 1, offset
    with _open(Span(path, 0, 0, 0, 0)) as file:
        while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
            number += block.count(b"\n")
            left -= len(block)
    return number
