"""Who of a job's workers has come, whether the gang is whole, and whether it is broken: what worker 0 knows. No network here.

A worker counts as there while it is heard of. Once all are there the gang is whole and stays as it is: a worker that is started
again, falls silent or fails breaks it, and all are told why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launch.plan import Seat
from trainer.errors import Stopped

HOLD_SECONDS = 5.0
# Three answers, each held for the longest time.
_PRESENCE_SECONDS = 15.0
# One worker's ranks end with those of all others, the last within the time that Python and TensorFlow take to end.
_FOLLOW_SECONDS = 120.0
_GOOD_ENDS = (0, Stopped.exit_code)


@dataclass(frozen=True)
class CheckIn:
    """A worker says that it is there. `boot` is another one each time that it is started; `setup` is what must be the same
    on all workers, by name; `unresolved` are the peers whose names it cannot resolve, so that its ranks would not find them."""

    index: int
    boot: str
    seat: Seat
    setup: Mapping[str, str]
    unresolved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How the gathering stands: the gang once it is whole, else who is missing or does not find the others; and why the gang is
    broken, if it is."""

    version: int
    gang: tuple[Seat, ...] | None = None
    missing: tuple[int, ...] = ()
    unresolved: tuple[tuple[int, tuple[str, ...]], ...] = ()
    broken: str | None = None
    is_another: bool = False  # whoever asks is not of this gang, which has not ended yet


class Mismatch(Exception):
    """A worker that was started with other settings than worker 0."""


class Gathering:
    """Worker 0's list. `silence_seconds` is how long a worker of a whole gang may not be heard of."""

    def __init__(
        self,
        num_workers: int,
        setup: Mapping[str, str],
        silence_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_workers, self._setup, self._silence_seconds, self._clock = num_workers, setup, silence_seconds, clock
        self._there: dict[int, CheckIn] = {}
        self._heard: dict[int, float] = {}
        self._left: dict[int, tuple[int, float]] = {}
        self._lost: set[int] = set()  # that will not say goodbye any more
        self._strangers: dict[int, str] = {}
        self._gang: tuple[Seat, ...] | None = None
        self._broken: str | None = None
        self._version = 0
        self._changed = threading.Condition()

    def check_in(self, entry: CheckIn, known_version: int, hold_seconds: float) -> Standing:
        """Takes note of a worker and tells it how things stand, at the latest after so long, or as soon as they differ from the
        version that it knows. Raises Mismatch."""
        self._compare(entry)
        with self._changed:
            former = self._there.get(entry.index)
            if self._gang is not None and former is not None and former.boot != entry.boot:
                if entry.index not in self._left:
                    self._lost.add(entry.index)
                    self._break(f"worker {entry.index} ({entry.seat.host}) was started again")
                return Standing(self._version, is_another=True)
            if former is None or (former.boot, former.unresolved) != (entry.boot, entry.unresolved):
                self._change()
            self._there[entry.index] = entry
            self._strangers.pop(entry.index, None)
            self._heard[entry.index] = self._clock()
            self._look()
            if self._version == known_version:
                self._changed.wait_for(lambda: self._version != known_version, hold_seconds)
            self._look()
            return self._standing()

    def leave(self, index: int, boot: str, exit_code: int) -> None:
        """A worker says goodbye."""
        with self._changed:
            entry = self._there.get(index)
            if entry is None or entry.boot != boot:
                return
            if self._gang is None:
                del self._there[index]
            else:
                self._left[index] = (exit_code, self._clock())
                if exit_code not in _GOOD_ENDS:
                    self._break(f"worker {index} ({entry.seat.host}) left with exit code {exit_code}")
            self._change()

    def turn_away(self, index: int, address: str) -> None:
        """Takes note that someone who says to be this worker does not know the secret."""
        with self._changed:
            if 0 <= index < self._num_workers and index not in self._there:
                self._strangers[index] = address

    @property
    def strangers(self) -> Mapping[int, str]:
        """Missing workers as which someone came without knowing the secret, and from where."""
        with self._changed:
            return {index: address for index, address in self._strangers.items() if index not in self._there}

    def wait_until_all_have_left(self, seconds: float, besides: int) -> bool:
        """Whether all workers of the gang but one, and those that are lost, said goodbye within so long. True where there is no
        gang."""
        with self._changed:
            others = set(range(self._num_workers)) - {besides}
            return self._gang is None or self._changed.wait_for(lambda: others <= {*self._left, *self._lost}, seconds)

    def _compare(self, entry: CheckIn) -> None:
        if not 0 <= entry.index < self._num_workers:
            raise Mismatch(f"worker 0 knows {self._num_workers} workers; there is no number {entry.index}")
        for name, ours in self._setup.items():
            theirs = entry.setup.get(name)
            if theirs != ours:
                raise Mismatch(f"{name}: worker {entry.index} ({entry.seat.host}) has {theirs}, worker 0 has {ours}")

    def _look(self) -> None:
        """What follows from the time."""
        now = self._clock()
        if self._gang is None:
            for index in [index for index in self._there if now - self._heard[index] > _PRESENCE_SECONDS]:
                del self._there[index]
                self._change()
            if len(self._there) == self._num_workers and not any(entry.unresolved for entry in self._there.values()):
                self._gang = tuple(self._there[index].seat for index in range(self._num_workers))
                self._change()
            return
        for index, (exit_code, since) in self._left.items():
            if len(self._left) < self._num_workers and now - since > _FOLLOW_SECONDS:
                self._break(f"worker {index} left with exit code {exit_code}, and the others did not follow")
        for index in set(self._there) - set(self._left):
            if now - self._heard[index] > self._silence_seconds:
                self._lost.add(index)
                host = self._there[index].seat.host
                self._break(f"worker {index} ({host}) was not heard of for {self._silence_seconds:g} s")

    def _break(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason
            self._change()

    def _change(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _standing(self) -> Standing:
        missing = tuple(index for index in range(self._num_workers) if index not in self._there)
        unresolved = tuple((index, entry.unresolved) for index, entry in sorted(self._there.items()) if entry.unresolved)
        return Standing(self._version, self._gang, missing, unresolved, self._broken)
