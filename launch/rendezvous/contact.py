"""A worker's standing contact with worker 0: a thread that checks in again and again, first until all have come, then to hear
whether the gang is broken.

In a thread, because a resolver that does not answer holds whoever asks it for half a minute.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from launch.plan import Seat
from launch.rendezvous.caller import Caller, Refused, Restarted, Unreachable
from launch.rendezvous.gathering import HOLD_SECONDS, CheckIn, Standing
from launch.rendezvous.network import find_unknown
from launch.rendezvous.server import read_standing
from trainer.errors import UserError

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
# The end of a former job of the same name may still answer for a moment.
_REFUSED_SECONDS = 10.0
_GOODBYE_SECONDS = 5.0
_RESOLVE_SECONDS = 5.0


class Contact:
    """While entered, keeps in contact. All it learns is in its attributes."""

    def __init__(self, caller: Caller, entry: CheckIn, peers: Iterable[str], silence_seconds: float) -> None:
        self._unresolved = set(peers)
        self._caller, self._entry, self._silence_seconds = caller, entry, silence_seconds
        self.gang: tuple[Seat, ...] | None = None
        self.standing: Standing | None = None  # the last that was heard
        self.problem: str | None = None  # why nothing is heard at the moment
        self.refusal: UserError | None = None  # why nothing ever will be
        self.broken: str | None = None
        self.refused_by: str | None = None  # what answers in worker 0's place at the moment
        self.changed = threading.Event()
        self._ended = threading.Event()
        self._heard = time.monotonic()
        self._refused_since: float | None = None
        self._thread = threading.Thread(target=self._go_on, name="contact", daemon=True)

    def __enter__(self) -> Contact:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not waited for: it may be held up by a resolver, and ends with the process.
        self._ended.set()

    def say_goodbye(self, exit_code: int) -> None:
        """Tells worker 0 that this worker leaves, as far as that is possible within seconds."""
        self._ended.set()
        goodbye = threading.Thread(target=self._leave, args=(exit_code,), name="goodbye", daemon=True)
        goodbye.start()
        goodbye.join(_GOODBYE_SECONDS)

    def _leave(self, exit_code: int) -> None:
        body = json.dumps({"boot": self._entry.boot, "exit_code": exit_code}).encode()
        try:
            self._caller.call("DELETE", f"/workers/{self._entry.index}", body)
        except (Unreachable, Refused) as error:
            logger.debug("no goodbye: %s", error)

    def _go_on(self) -> None:
        while not self._ended.is_set() and self.refusal is None and self.broken is None:
            try:
                self._take(self._check_in())
                pause = _RETRY_SECONDS if self.standing and self.standing.is_another else 0.0
            except Exception as error:  # whatever it is: the thread must not end in silence
                self._note(error)
                pause = _RETRY_SECONDS
            self.changed.set()
            self._ended.wait(pause)

    def _check_in(self) -> Standing:
        if self.gang is None and self._unresolved:
            self._unresolved = find_unknown(self._unresolved, _RESOLVE_SECONDS)
        hold_seconds = min(HOLD_SECONDS, self._silence_seconds / 4, _RETRY_SECONDS if self._unresolved else HOLD_SECONDS)
        entry: Mapping[str, object] = {
            **asdict(self._entry.seat),
            "boot": self._entry.boot,
            "setup": dict(self._entry.setup),
            "unresolved": sorted(self._unresolved),
            "known_version": self.standing.version if self.standing and self.problem is None else -1,
            "hold_seconds": hold_seconds,
        }
        path, body = f"/workers/{self._entry.index}", json.dumps(entry).encode()
        status, answer = self._caller.call("PUT", path, body, hold_seconds + _ANSWER_SECONDS)
        if status != 200:
            raise Refused(f"worker 0 at {self._caller.place} refuses this worker: {json.loads(answer)['error']}", settled=True)
        return read_standing(answer)

    def _take(self, standing: Standing) -> None:
        self.standing, self.problem, self.refused_by = standing, None, None
        self._heard, self._refused_since = time.monotonic(), None
        if standing.is_another:
            self.problem = "worker 0 waits for the end of the gang before, which this worker is not of"
        elif self.gang is None:
            self.gang = standing.gang
        if self.gang is not None and (standing.broken or standing.is_another):
            self.broken = standing.broken or "another took this worker's place"

    def _note(self, error: Exception) -> None:
        now = time.monotonic()
        self.refused_by = str(error) if isinstance(error, Refused) else None
        self.problem = str(error) if isinstance(error, (Unreachable, Refused)) else f"{type(error).__name__}: {error}"
        if self.gang is not None:
            if isinstance(error, Restarted):
                self.broken = self.problem
            elif now - self._heard > self._silence_seconds:
                self.broken = f"worker 0 was not heard of for {self._silence_seconds:g} s: {self.problem}"
        elif isinstance(error, Refused):
            self._refused_since = self._refused_since or now
            if error.settled and now - self._refused_since >= _REFUSED_SECONDS:
                self.refusal = UserError(self.problem)
        else:
            self._refused_since = None
