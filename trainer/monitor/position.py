"""Where the run stands inside a call of TensorFlow, read again and again by a thread of its own.

Such a read may wait for ever when TensorFlow is stuck; then what was read last stays, and its age tells.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Position:
    """A step and its stage (-1 and "" before there are any), when they changed, and when they were read, by
    `time.monotonic`."""

    step: int = -1
    stage: str = ""
    changed: float = 0.0
    read: float = 0.0


class PositionReader:
    """Calls `read` once a second between `start` and `stop`; `last` is what it returned."""

    def __init__(self, read: Callable[[], tuple[int, str] | None]) -> None:
        self.last = Position()
        self._read = read
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="position", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 1.0) -> None:
        """Waits for a read that is under way, but not for ever."""
        self._ended.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            try:
                found = self._read()
            except Exception:
                # What a fault of ours costs is knowing where inside a call a hang is.
                logger.warning("the watchdog cannot read the step inside a call of TensorFlow any more", exc_info=True)
                return
            if found is not None:
                now = time.monotonic()
                is_new = found != (self.last.step, self.last.stage)
                self.last = Position(*found, now if is_new else self.last.changed, now)
