"""Reads chosen columns of CSV, TSV and Parquet files.

A row is its place and the values of the columns that were asked for, in that order. Of CSV the place is the line that the
row begins in, of TSV the offset of its line, of Parquet the number of the row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.input_files import byte_lines, decode, line_number, text_lines, unreadable, whole_file
from trainer.data.sources import Span, compression_of, one_line
from trainer.errors import DataError

# What a column of a Parquet file may hold, by field: all fields but these are text.
FIELDS_OF_OTHER_TYPES = ("label", "answers")


class FieldColumn(NamedTuple):
    """A field of the task, as `data.fields` names it, and where it is: a column's name, or its number from 0."""

    field: str
    column: str | int


Row = tuple[int, Sequence[Any]]


def csv_rows(span: Span, columns: Sequence[FieldColumn]) -> Iterator[Row]:
    """Rows as RFC 4180 has them, with line ends inside quotes; those that begin within the span count.

    Whether a line begins a row is known only from the file's first byte on, so reading always begins there.
    """
    next_offset = 0

    def lines() -> Iterator[str]:
        nonlocal next_offset
        for offset, line in byte_lines(whole_file(span)):
            next_offset = offset + len(line)
            yield decode(line, span.path, offset)

    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(lines(), strict=True)
    numbers = _given_numbers(columns)
    compressed = compression_of(span.path) is not None
    try:
        while compressed or next_offset < span.end:
            offset, number = next_offset, rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return
            if numbers is None:
                numbers = _column_numbers(row, columns, f"{span.path}:{number}")
            elif row and (compressed or offset >= span.begin):
                try:
                    yield number, [row[column] for column in numbers]
                except IndexError:
                    raise _too_short(row, numbers, columns, f"{span.path}:{number}") from None
    except csv.Error as error:
        raise DataError(f"{span.path}:{rows.line_num}: is not CSV ({one_line(error)}); mend that line") from None


def tsv_rows(span: Span, columns: Sequence[FieldColumn]) -> Iterator[Row]:
    """Rows of fields between tabs. IANA's text/tab-separated-values has no quotes, so any line begins a row."""
    given = _given_numbers(columns)
    numbers = _header_numbers(span, columns) if given is None else given
    for offset, line in text_lines(span):
        is_header = offset == 0 and given is None
        if line and not is_header:
            row = line.split("\t")
            try:
                yield offset, [row[column] for column in numbers]
            except IndexError:
                raise _too_short(row, numbers, columns, f"{span.path}:{line_number(span.path, offset)}") from None


def parquet_rows(span: Span, columns: Sequence[FieldColumn]) -> Iterator[Row]:
    """Rows `begin` to `end`, each with its number; raises DataError for one that lacks a value."""
    names = [str(column) for _, column in columns]
    with _open_parquet(span.path) as file:
        for column in columns:
            _check_column(file, span.path, column)
        try:
            for group_number, first_row in _row_groups(file, span):
                row = first_row
                for batch in file.iter_batches(256, row_groups=[group_number], columns=names, use_threads=False):
                    for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                        if span.begin <= row < span.end:
                            if None in values:
                                missing = names[values.index(None)]
                                raise DataError(
                                    f"{span.path}: row {row} (from 0) has no {missing!r}; mend or leave out that row"
                                )
                            yield row, values
                        row += 1
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise unreadable(span.path, error) from None


def parquet_byte_ranges(span: Span, columns: Sequence[FieldColumn]) -> Iterator[tuple[int, int]]:
    """Where in the file the chunks of the columns are, begin and end."""
    with _open_parquet(span.path) as file:
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        numbers = []
        for column in columns:
            _check_column(file, span.path, column)
            # What is in a list or a structure has columns of its own, as in "answers.text.list.element".
            numbers += [
                number for number, leaf in enumerate(leaves) if leaf == column.column or leaf.startswith(f"{column.column}.")
            ]
        for group_number, _ in _row_groups(file, span):
            for number in numbers:
                chunk = file.metadata.row_group(group_number).column(number)
                begin = chunk.dictionary_page_offset or chunk.data_page_offset
                yield begin, begin + chunk.total_compressed_size


def _given_numbers(columns: Sequence[FieldColumn]) -> list[int] | None:
    """The numbers of the columns where they are given as numbers; None where a header line has their names."""
    numbers = [column for _, column in columns if isinstance(column, int)]
    if numbers and len(numbers) < len(columns):
        named = ", ".join(f"{field}: {column}" for field, column in columns)
        raise DataError(
            f"data.fields: got {named}; expected all of them as names, or, where the files have no header line, as numbers"
        )
    return numbers or None


def _header_numbers(span: Span, columns: Sequence[FieldColumn]) -> list[int]:
    for _, line in text_lines(whole_file(span)):
        return _column_numbers(line.split("\t"), columns, f"{span.path}:1")
    raise DataError(f"{span.path}: is empty, expected a header line")


def _column_numbers(header: list[str], columns: Sequence[FieldColumn], where: str) -> list[int]:
    for field, column in columns:
        if column not in header:
            raise DataError(
                f"{where}: has no column {column!r}; it has {', '.join(header)}: set data.fields.{field} to one of them, "
                "or to a column number from 0 where there is no header line"
            )
    return [header.index(str(column)) for _, column in columns]


def _too_short(row: list[str], numbers: list[int], columns: Sequence[FieldColumn], where: str) -> DataError:
    number, field = next((n, field) for n, (field, _) in zip(numbers, columns, strict=True) if n >= len(row))
    return DataError(f"{where}: has {len(row)} columns, expected a {field} in column {number} (from 0); mend that line")


def _open_parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def _check_column(file: pq.ParquetFile, path: str, column: FieldColumn) -> None:
    field, name = column
    schema = file.schema_arrow
    if name not in schema.names:
        raise DataError(
            f"{path}: has no column {name!r}; it has {', '.join(schema.names)}: set data.fields.{field} to one of them"
        )
    kind = schema.field(name).type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and field not in FIELDS_OF_OTHER_TYPES:
        raise DataError(
            f"{path}: column {name!r} is of type {kind}, expected string; set data.fields.{field} to a column of text"
        )


def _row_groups(file: pq.ParquetFile, span: Span) -> Iterator[tuple[int, int]]:
    """The row groups that hold rows of a span, each with the number of its first row."""
    first_row = 0
    for number in range(file.metadata.num_row_groups):
        num_rows = file.metadata.row_group(number).num_rows
        if first_row < span.end and first_row + num_rows > span.begin:
            yield number, first_row
        first_row += num_rows
