"""Opens spans of input files, compressed or not, and gives their lines; every complaint has its place."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, cast

import pyarrow as pa

from trainer.data.sources import Span, compression_of, one_line
from trainer.errors import DataError

BLOCK_BYTES = 2**20
# Beyond these it is no text, but a file made to fill the memory or the disk of whoever reads it.
LONGEST_LINE_BYTES = 256 * 2**20
MOST_EXPANSION, ALWAYS_HELD_BYTES = 200, 64 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_span(span: Span) -> BinaryIO:
    """A span's file, at its begin; compressed files, also of several members, as what they hold."""
    compression = compression_of(span.path)
    try:
        if compression is None:
            file = open(span.path, "rb", buffering=BLOCK_BYTES)  # noqa: SIM115
            file.seek(span.begin)
            return file
        stream = pa.input_stream(span.path, compression=compression)
        limit = ALWAYS_HELD_BYTES + MOST_EXPANSION * os.path.getsize(span.path)
        return cast(BinaryIO, io.BufferedReader(_Bounded(stream, limit), BLOCK_BYTES))
    except OSError as error:
        raise unreadable(span.path, error) from None


class _Bounded(io.RawIOBase):
    """What a compressed file holds; raises OSError where that is more than `limit` bytes."""

    def __init__(self, stream: pa.NativeFile, limit: int) -> None:
        self._stream, self._limit, self._left = stream, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_read = int(self._stream.readinto(buffer))
        self._left -= num_read
        if self._left < 0:
            raise OSError(f"it holds more than {self._limit:,} bytes, over {MOST_EXPANSION} times its own size")
        return num_read

    def close(self) -> None:
        self._stream.close()
        super().close()


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
                line = file.readline(LONGEST_LINE_BYTES + 1)
            except OSError as error:
                raise unreadable(span.path, error) from None
            if not line:
                return
            if len(line) > LONGEST_LINE_BYTES:
                raise DataError(
                    f"{span.path}: has a line of over {LONGEST_LINE_BYTES:,} bytes; is it text? Break it, or leave it out"
                )
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
