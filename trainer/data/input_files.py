"""Opens spans of input files, compressed or not, and gives their lines; every complaint has its place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, cast

import pyarrow as pa

from trainer.data.sources import Span, compression_of, one_line
from trainer.errors import DataError

BLOCK_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_span(span: Span) -> BinaryIO:
    """A span's file, at its begin; compressed files, also of several members, as what they hold."""
    compression = compression_of(span.path)
    try:
        if compression is None:
            file = open(span.path, "rb", buffering=BLOCK_BYTES)  # noqa: SIM115
            file.seek(span.begin)
            return file
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(span.path, compression=compression), BLOCK_BYTES))
    except OSError as error:
        raise unreadable(span.path, error) from None


def checked_read(file: BinaryIO, path: str, limit: int = -1) -> bytes:
    try:
        return file.read(limit)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({one_line(error)}); is it damaged, or not what its name says?")


def whole_file(span: Span) -> Span:
    return replace(span, begin=0, end=span.size, ends_document=True)


def byte_lines(span: Span) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in a span, each with its offset and its line end; of compressed files all."""
    compressed = compression_of(span.path) is not None
    with open_span(span) as file:
        offset = span.begin
        while compressed or offset < span.end:
            try:
                line = file.readline()
            except OSError as error:
                raise unreadable(span.path, error) from None
            if not line:
                return
            yield offset, line
            offset += len(line)


def text_lines(span: Span) -> Iterator[tuple[int, str]]:
    """The lines that begin in a span, each with its offset and without its line end."""
    for offset, line in byte_lines(span):
        yield offset, decode(line, span.path, offset).rstrip("\r\n")


def decode(data: bytes, path: str, offset: int) -> str:
    """UTF-8 to text. A byte order mark at the start of a file is not part of its text."""
    try:
        return data.removeprefix(BYTE_ORDER_MARK).decode() if offset == 0 else data.decode()
    except UnicodeDecodeError as error:
        mark = len(BYTE_ORDER_MARK) if offset == 0 and data.startswith(BYTE_ORDER_MARK) else 0
        place = offset + mark + error.start
        raise DataError(
            f"{path}:{line_number(path, place)}: byte 0x{error.object[error.start]:02x} at offset {place} "
            "is not UTF-8; convert the file, for instance with iconv, or check data.format"
        ) from None


def line_number(path: str, offset: int) -> int:
    """The line, from 1, that holds a byte (of a compressed file, of what it holds); read for complaints only."""
    number, left = 1, offset
    with open_span(Span(path, 0, 0, 0, 0)) as file:
        while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
            number += block.count(b"\n")
            left -= len(block)
    return number
