"""Finds the input files of a source and divides them into units of work; reads no more of them than that takes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.config import SourceConfig
from trainer.errors import DataError

# What one worker reads for one part of the store: small enough that a modest file keeps all cores busy and that little
# is lost when `prepare` is interrupted, large enough that a terabyte makes no more files than a process can map.
UNIT_BYTES = 16 * 2**20

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

# Formats of which any line may be the first one read. In CSV a line may be in the middle of a quoted field.
FORMATS_OF_LINES = ("text", "lines", "jsonl", "tsv")


@dataclass(frozen=True)
class Span:
    """A range of one input file: bytes `begin` to `end` of it, in Parquet rows.

    In formats of lines both ends are at the start of a line. `size` and `modified_ns` are those of the whole file when
    the work was divided. `ends_document` belongs to running text, where one document may take several spans. `target` is
    the span whose lines are the translations of this one's, where two files go side by side.
    """

    path: str
    size: int
    modified_ns: int
    begin: int
    end: int
    ends_document: bool = True
    target: Span | None = None

    @property
    def files(self) -> tuple[Span, ...]:
        """The spans of single files that this one consists of."""
        return (self,) if self.target is None else (self, self.target)

    @property
    def num_bytes(self) -> int:
        """Of Parquet, whose spans count rows, this means nothing."""
        return sum(span.end - span.begin for span in self.files)


@dataclass(frozen=True)
class Unit:
    """The spans that become one part of the store, in order."""

    spans: tuple[Span, ...]

    @property
    def files(self) -> tuple[Span, ...]:
        return tuple(file for span in self.spans for file in span.files)


def compression_of(path: str) -> str | None:
    return COMPRESSIONS.get(os.path.splitext(path)[1])


def plan_units(source: SourceConfig, file_format: str, key: str) -> list[Unit]:
    """Divides a source into units; the same files always give the same units, whatever machine or number of cores.

    `key` names the source in complaints, as in "data.train[0]". Raises DataError for files that are not there or cannot
    be divided as `begin` and `end` ask for.
    """
    paths = find_files(source.path, f"{key}.path")
    if source.target_path is not None:
        spans = list(_pairs(paths, source, key))
    else:
        spans = [span for path in paths for span in _spans(path, source, file_format, key)]
    return list(_group(spans, file_format))


def find_files(pattern: str, key: str) -> list[str]:
    """The files that a path or glob (`**` for any depth) stands for, sorted by name; `key` is where the path stands."""
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        raise DataError(f"{key}: {pattern} is a folder; write which files of it, as in {pattern.rstrip('/')}/*.txt")
    if os.path.exists(expanded):
        return [expanded]
    found = sorted(path for path in glob.glob(expanded, recursive=True) if os.path.isfile(path))
    if not found:
        reason = "no file matches" if glob.has_magic(expanded) else "no such file:"
        raise DataError(f"{key}: {reason} {pattern} (looked in {Path.cwd()}); check the path")
    return found


def _pairs(paths: Sequence[str], source: SourceConfig, key: str) -> Iterator[Span]:
    """Each file whole, with the one that its translations are in: which lines belong together only counting tells."""
    targets = find_files(source.target_path or "", f"{key}.target_path")
    if len(paths) != len(targets):
        raise DataError(
            f"{key}: {len(paths)} files match {source.path} and {len(targets)} match {source.target_path}; "
            "each needs its own: check both paths"
        )
    for path, target_path in zip(paths, targets, strict=True):
        status, target_status = _status(path, f"{key}.path"), _status(target_path, f"{key}.target_path")
        if status.st_size or target_status.st_size:
            target = Span(target_path, target_status.st_size, target_status.st_mtime_ns, 0, target_status.st_size)
            yield Span(path, status.st_size, status.st_mtime_ns, 0, status.st_size, target=target)


def _status(path: str, key: str) -> os.stat_result:
    try:
        with open(path, "rb"):
            return os.stat(path)
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror}); check its permissions") from None


def _spans(path: str, source: SourceConfig, file_format: str, key: str) -> Iterator[Span]:
    """The spans of one file, in order; none where it has nothing."""
    status = _status(path, f"{key}.path")
    whole = (source.begin, source.end) == (0.0, 1.0)
    if compression_of(path) and file_format != "parquet":
        if not whole:
            raise DataError(f"{key}: {path} is compressed, and `begin` and `end` need to skip in it; decompress or split it")
        bounds = [0, status.st_size]
    elif file_format == "parquet":
        bounds = _row_bounds(path, source, key)
    else:
        first, last = (share_of(status.st_size, share) for share in (source.begin, source.end))
        bounds = [first, last]
        if file_format in FORMATS_OF_LINES:
            bounds = _line_bounds(path, status.st_size, first, last)
    bounds = sorted(set(bounds))
    for begin, end in pairwise(bounds):
        yield Span(path, status.st_size, status.st_mtime_ns, begin, end, ends_document=end == bounds[-1])


def share_of(size: int, share: float) -> int:
    """Where a share of something ends: a function of both alone, so that [0, x] and [x, 1] have no gap or overlap."""
    return size if share == 1.0 else int(size * share)


def _line_bounds(path: str, size: int, first: int, last: int) -> list[int]:
    """Line starts about a unit apart, between those that follow the offsets `first` and `last`."""
    with open(path, "rb") as file:

        def next_line_start(offset: int) -> int:
            if offset in (0, size):
                return offset
            file.seek(offset - 1)
            while block := file.read(2**16):
                if (found := block.find(b"\n")) >= 0:
                    return file.tell() - len(block) + found + 1
            return size

        begin, end = next_line_start(first), next_line_start(last)
        # All of one length, so that no core is left with a larger rest than the others.
        num_units = -(-(end - begin) // UNIT_BYTES)
        bounds = [begin]
        for number in range(1, num_units):
            offset = begin + (end - begin) * number // num_units
            if offset > bounds[-1]:
                bounds.append(next_line_start(offset))
        return [*bounds, end]


def _row_bounds(path: str, source: SourceConfig, key: str) -> list[int]:
    """Rows about a unit apart, each the first of a row group, between the shares that are asked for."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{key}.path: {path} is not a Parquet file ({one_line(error)}); check data.format") from None
    first, last = (share_of(metadata.num_rows, share) for share in (source.begin, source.end))
    bounds, row, num_bytes = [first], 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if num_bytes >= UNIT_BYTES and first < row < last:
            bounds.append(row)
            num_bytes = 0
        row += group.num_rows
        num_bytes += group.total_byte_size if row > first else 0
    return [*bounds, last]


def _group(spans: Sequence[Span], file_format: str) -> Iterator[Unit]:
    """Puts small files together, so that a million of them do not become a million parts."""
    group: list[Span] = []
    num_bytes = 0
    for span in spans:
        # The bytes of a Parquet span are not known here; its whole file's serve where that is small.
        span_bytes = min(span.size, UNIT_BYTES) if file_format == "parquet" else span.num_bytes
        if group and num_bytes + span_bytes > UNIT_BYTES:
            yield Unit(tuple(group))
            group, num_bytes = [], 0
        group.append(span)
        num_bytes += span_bytes
    if group:
        yield Unit(tuple(group))


def one_line(error: Exception) -> str:
    """The message of another library's error, fit for a complaint that takes one line."""
    return " ".join(str(error).split())
