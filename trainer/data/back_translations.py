"""Reads the file of texts and what they became when they were translated there and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from trainer.data.input_files import text_lines
from trainer.data.sources import Span
from trainer.errors import DataError
from trainer.files import file_sha256


@dataclass(frozen=True)
class BackTranslationsFile:
    """A file and the sha256 of its bytes."""

    path: str
    sha256: str


def back_translations_file(path: str) -> BackTranslationsFile:
    try:
        return BackTranslationsFile(path, file_sha256(Path(path)))
    except OSError as error:
        raise DataError(
            f"data.augmentation.back_translations: {path} cannot be read ({error.strerror}); check the path"
        ) from None


@functools.lru_cache(maxsize=1)
def read_back_translations(file: BackTranslationsFile) -> Mapping[str, str]:
    """By text, its back-translation, of the first line that has the text; read once a process.

    Raises DataError where a line is not a text, a tab, and another, or the file is no longer what it was.
    """
    path = file.path
    if back_translations_file(path) != file:
        raise DataError(f"{path}: changed while it was being used; run drumline prepare again once it is complete")
    size = Path(path).stat().st_size
    found: dict[str, str] = {}
    for number, (_, line) in enumerate(text_lines(Span(path, size, 0, 0, size)), 1):
        if not line:
            continue
        text, tab, translated = line.partition("\t")
        if not tab or not translated.strip():
            raise DataError(f"{path}:{number}: got {line[:40]!r}, expected a text, a tab, and its back-translation")
        found.setdefault(text, translated)
    return MappingProxyType(found)
