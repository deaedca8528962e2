"""Leaving a process whose main thread no longer can: last words, the stacks of all threads, and `os._exit`.

The main thread may hold the lock of `logging` or wait for a file system that is gone. So each thing is done in a thread
of its own, for which the leaving does not wait for long.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger(__name__)

_SECONDS = 2.0
_STDERR = 2


def say(line: str) -> None:
    """Logs an error; past `logging`, straight to stderr, where that waits for a lock."""
    if not _within(_SECONDS, lambda: logger.error("%s", line)):
        _within(_SECONDS, lambda: os.write(_STDERR, f"{line}\n".encode()))


def write_stacks(title: str, path: Path) -> None:
    """Writes where each Python thread is to stderr, and to a file where its folder is there and takes it."""
    _within(_SECONDS, lambda: _write_to(_STDERR, title))
    if not _within(_SECONDS, lambda: _write_file(path, title)):
        say(f"the stacks are only here: {path} could not be written within {_SECONDS:.0f} s")


def leave(exit_code: int) -> NoReturn:
    """Ends the process, whatever its threads do."""
    _within(_SECONDS, _flush)
    os._exit(exit_code)


def _write_to(descriptor: int, title: str) -> None:
    os.write(descriptor, f"{title}\n".encode())
    faulthandler.dump_traceback(descriptor, all_threads=True)


def _write_file(path: Path, title: str) -> None:
    try:
        with path.open("w") as file:
            _write_to(file.fileno(), title)
            os.fsync(file.fileno())
    except OSError as error:
        say(f"the stacks are only here: {path} cannot be written: {error}")


def _flush() -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more: nothing is left to be told
            stream.flush()


def _within(seconds: float, do: Callable[[], object]) -> bool:
    """Does it in another thread. Whether it was done in time."""
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
