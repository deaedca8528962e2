"""What is asked of the launcher while it runs: signals, collected so that whoever waits can look at them between two looks
at its processes."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

_STOPS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.1


class Requests:
    """While entered, SIGTERM and SIGINT ask for a stop, and SIGUSR1 for a checkpoint, instead of ending this process.

    `stop` holds from the first SIGTERM or SIGINT on, over all processes that are started one after another.
    """

    def __init__(self) -> None:
        self.stop = False
        self._untaken: list[int] = []
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Requests:
        for number in (*_STOPS, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def take(self) -> list[int]:
        """The signals that came since the last time, in their order."""
        taken, self._untaken = self._untaken, []
        return taken

    def pause(self, seconds: float) -> bool:
        """Waits so long, or until a stop is asked for. Whether it was."""
        until = time.monotonic() + seconds
        while not self.stop and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
        self._untaken.clear()  # Nothing runs that could do as they say.
        return self.stop

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.stop = self.stop or number in _STOPS
        self._untaken.append(number)
