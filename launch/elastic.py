"""Keeps a run going under Horovod while machines come and go.

The ranks know nothing of it. When other machines are to take part, all ranks are asked to save and stop, as by SIGTERM, and
`horovodrun` is started with the machines that there are now: the order of the data and the global batch do not depend on how
many ranks there are. So does torchrun (docs.pytorch.org/docs/stable/elastic/run.html: membership changes restart all
workers). A change costs the start of a process; it loses no step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from launch import horovod, restarts
from launch.discovery import Discovery
from launch.membership import Absences, Gang, count, describe_change, form_gang
from launch.plan import Plan
from launch.requests import Requests
from launch.restarts import Restarts
from trainer.errors import Stopped

logger = logging.getLogger(__name__)

# Machines that come one after another are waited for, so that the run is interrupted once. One that goes is not.
_SETTLE_SECONDS = 3.0
# After a failure: does the script say that a machine of the gang is gone?
_ANSWERS_AFTER_FAILURE = 2


@dataclass
class Elastic:
    """A run of changing size. `plan(gang, is_first)` says what to start; `sizes` are those allowed, the largest first."""

    plan: Callable[[Gang, bool], Plan]
    sizes: tuple[int, ...]
    restarts: Restarts
    discovery: Discovery
    requests: Requests
    absences: Absences = field(default_factory=Absences)
    previous: Gang | None = None  # whose first machine shall stay the first

    def run(self) -> int:
        """Trains until a try ends for good; its exit code, or 75 where a stop was asked for while nothing ran."""
        is_first = True
        while (gang := self._wait_for_gang()) is not None:
            logger.info("Starting %s: %s.", count(gang.size, "worker"), gang)
            began = time.monotonic()
            changed: list[str] = []
            outcome = horovod.run(self.plan(gang, is_first), self.requests, partial(self._change, gang, changed))
            is_first = False
            if self.requests.stop or restarts.why(outcome.exit_code) is None:
                return outcome.exit_code
            self.previous = gang if changed else None
            if changed:
                continue
            if not self._recover(gang, outcome, time.monotonic() - began):
                return Stopped.exit_code if self.requests.stop else outcome.exit_code
        return Stopped.exit_code

    def _wait_for_gang(self) -> Gang | None:
        """The gang to start, as soon as there are enough machines; None when a stop is asked for before."""
        told: Mapping[str, int] | None = None
        while not self.requests.stop:
            slots = self.discovery.answer.slots
            gang = form_gang(slots, self.sizes, self.previous, self.absences.left_out(time.monotonic()))
            if gang is not None:
                return gang
            if slots != told:
                told = slots
                logger.warning("Waiting for at least %s; so far: %d.", count(self.sizes[-1], "slot"), sum(slots.values()))
            self.requests.pause(0.2)
        return None

    def _change(self, gang: Gang, changed: list[str]) -> str | None:
        """Why the running gang has to make way for another; noted in `changed`."""
        answer, now = self.discovery.answer, time.monotonic()
        new = form_gang(answer.slots, self.sizes, gang, self.absences.left_out(now))
        if new == gang or (gang.fits(answer.slots) and now - answer.since < _SETTLE_SECONDS):
            return None
        changed.append(describe_change(gang, new, answer.slots))
        return changed[-1]

    def _recover(self, gang: Gang, outcome: horovod.Outcome, ran_seconds: float) -> bool:
        """Waits until the run is to be started again after a failure. Whether it is."""
        seen = self.discovery.answer.number
        until = time.monotonic() + 15.0
        while self.discovery.answer.number < seen + _ANSWERS_AFTER_FAILURE and time.monotonic() < until:
            if self.requests.pause(0.1):
                return False
        slots = self.discovery.answer.slots
        if not gang.fits(slots):
            new = form_gang(slots, self.sizes, gang, self.absences.left_out(time.monotonic()))
            logger.warning("%s; the workers ended with it.", describe_change(gang, new, slots))
            return True
        restart = self.restarts.decide(outcome.exit_code, ran_seconds)
        if restart is None:
            return False
        for host in outcome.failed_hosts:
            seconds = self.absences.failed(host, time.monotonic())
            if len(slots) > 1:
                logger.warning("Host %s is left out for %g s where the others suffice.", host, seconds)
        return not self.requests.pause(restart.pause_seconds)
