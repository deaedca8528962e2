"""When a run that ended is started again, and after which pause."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from launch.requests import Requests
from trainer.errors import HangDetected, Stopped

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 300.0
_FORGOTTEN_AFTER_SECONDS = 3600.0


@dataclass(frozen=True)
class Restart:
    """The run is to be started for the `number`-th time again, `pause_seconds` from now."""

    number: int
    pause_seconds: float


@dataclass
class Restarts:
    """How often a run was started again, of `at_most`; the pause doubles from one time to the next.

    A try that ran for an hour was no failure to start: after it the count begins anew.
    """

    at_most: int
    first_pause_seconds: float
    num_made: int = 0

    def after(self, exit_code: int, ran_seconds: float) -> Restart | None:
        """What follows a try that nobody asked to stop; None where it stays as it ended."""
        if why(exit_code) is None:
            return None
        if ran_seconds >= _FORGOTTEN_AFTER_SECONDS:
            self.num_made = 0
        if self.num_made >= self.at_most:
            return None
        pause = min(self.first_pause_seconds * 2.0**self.num_made, _LONGEST_PAUSE_SECONDS)
        self.num_made += 1
        return Restart(self.num_made, pause)

    def decide(self, exit_code: int, ran_seconds: float) -> Restart | None:
        """As `after`, and says so in one line: why, which try, and when; or why no more."""
        reason = why(exit_code)
        restart = self.after(exit_code, ran_seconds)
        if restart is not None:
            when = time.strftime("%H:%M:%S", time.localtime(time.time() + restart.pause_seconds))
            logger.warning(
                "The run ended with exit code %d: %s. Restart %d of %d at %s, in %g s.",
                exit_code,
                reason,
                restart.number,
                self.at_most,
                when,
                restart.pause_seconds,
            )
        elif reason is not None and self.at_most:
            logger.error(
                "The run ended with exit code %d: %s. Giving up after %d restarts (--restarts).",
                exit_code,
                reason,
                self.num_made,
            )
        return restart


def why(exit_code: int) -> str | None:
    """What ended a run that may go on if it is started again; None where it would only end the same way, or is done."""
    if exit_code == Stopped.exit_code:
        return "it was stopped, but not from here"
    if exit_code == HangDetected.exit_code:
        return "a worker hung or was lost"
    # As a shell has it: 128 and the number of the signal.
    if exit_code - 128 in {int(number) for number in signal.Signals}:
        return f"a worker was ended by {signal.Signals(exit_code - 128).name}"
    return None


def run(start: Callable[[bool], int], restarts: Restarts, requests: Requests) -> int:
    """Calls `start` (with True for the first time) until it ends for good; the exit code of the last time.

    A stop that is asked for is obeyed at once during a pause: 75.
    """
    is_first = True
    while True:
        began = time.monotonic()
        exit_code = start(is_first)
        is_first = False
        if requests.stop:
            return exit_code
        restart = restarts.decide(exit_code, time.monotonic() - began)
        if restart is None:
            return exit_code
        if requests.pause(restart.pause_seconds):
            logger.info("Asked to stop: the run is not started again.")
            return Stopped.exit_code
