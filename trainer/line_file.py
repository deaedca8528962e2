"""A file of JSON lines that grows: each line is there whole or not at all, also where the disk is full for a while."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class LineFile:
    """Lines that cannot be written wait in memory, and are tried again with the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._waiting: list[bytes] = []

    def append(self, content: Mapping[str, Any]) -> None:
        """Adds a line; numbers in it must be finite."""
        self._waiting.append((json.dumps(content, allow_nan=False) + "\n").encode())
        self._write_waiting()

    def sync(self) -> None:
        """Waits until what was written is on disk."""
        self._write_waiting()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            logger.warning("%s cannot be brought to disk: %s; training goes on", self._path, error)

    def close(self) -> None:
        self._write_waiting()
        if self._waiting:
            logger.error("%s: %d lines could not be written and are lost", self._path, len(self._waiting))
        os.close(self._descriptor)

    def _write_waiting(self) -> None:
        had_to_wait = len(self._waiting) > 1
        while self._waiting:
            size = os.fstat(self._descriptor).st_size
            try:
                written = os.write(self._descriptor, self._waiting[0])
                if written < len(self._waiting[0]):  # a disk that is nearly full takes a part
                    os.ftruncate(self._descriptor, size)
                    raise OSError("no room for the whole line")
            except OSError as error:
                if not had_to_wait:
                    logger.warning("%s cannot be written: %s; its lines wait in memory, training goes on", self._path, error)
                return
            self._waiting.pop(0)
        if had_to_wait:
            logger.warning("%s can be written again; no line of it is lost", self._path)
