"""Lines of text that a verb is given, in a file or on its input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trainer.errors import DataError


def lines_of_file(path: Path, option: str) -> Iterator[str]:
    """Raises DataError where the file that was given with an option cannot be opened, and as `read_lines` does."""
    try:
        return read_lines(path.open("rb"), str(path))
    except OSError as error:
        raise DataError(f"{option}: {path}: {error.strerror}") from None


def read_lines(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines as they come, so that it may be a pipe. Raises DataError for the first that is not UTF-8."""
    with file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise DataError(f"{name}:{number}: got the byte 0x{byte:02x}, expected text in UTF-8") from None
