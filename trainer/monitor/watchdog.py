"""The watchdog: ends a run that makes no progress, or has lost a rank, on all ranks, and says which rank it was.

A thread on each rank reports to the chief's once a second what the main thread is at. The chief calls the roll; where it,
or all others, are missed, the rest say so, write their stacks, and leave with 70. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from trainer.config import WatchdogConfig
from trainer.errors import BackendError, DrumlineError, HangDetected, Stopped
from trainer.monitor import departure, heartbeats
from trainer.monitor.heartbeats import Event, Heartbeats
from trainer.monitor.position import PositionReader
from trainer.monitor.roll_call import Report, name_ranks, roll_call

if TYPE_CHECKING:  # it imports TensorFlow
    from trainer.distribution import Distribution

_PAUSE_SECONDS = 0.5
_BEAT_SECONDS = 0.95  # a little less than two pauses
# A thread that slept so much longer than it asked for was suspended, with its process or machine.
_SUSPENDED_SECONDS = 5.0
_NOTE_AFTER_SECONDS = 3.0
# The others leave so long after a rank that was lost, or whose process has ended with an error: a launcher, and whoever
# reads its log, shall see the culprit first.
_AFTER_LOSS_SECONDS = 2.0
_AFTER_END_SECONDS = 1.0
# A rank with an error of its own may be one of many that have the same: those end by themselves, with their own exit code.
_FAILURE_SECONDS = 3.0
_LONGEST_FAILURE_SECONDS = 15.0


@dataclass(frozen=True)
class _Phase:
    number: int
    name: str
    began: float
    limit: float


@dataclass
class _Peer:
    """Another rank, as far as its connection tells. Times are of `time.monotonic`."""

    report: Report
    heard: float
    connected: bool = False
    said_goodbye: bool = False
    closed: float | None = None


@dataclass(frozen=True)
class _Departure:
    """That this rank leaves with 70, and when."""

    line: str
    at: float
    with_stacks: bool


class Watchdog:
    """While entered, watches the thread that entered it, and after `join` the other ranks.

    position: where the run stands inside a call of TensorFlow, as step and stage (one of `roll_call.STAGES`); called once a
              second from another thread. A change of it is progress.
    """

    def __init__(self, config: WatchdogConfig, directory: Path) -> None:
        self.position: Callable[[], tuple[int, str]] | None = None
        self._config, self._directory = config, directory
        self._rank, self._num_ranks = 0, 1
        self._who = heartbeats.this_process()
        self._phase = _Phase(0, "starting", time.monotonic(), config.startup_seconds)
        self._reader = PositionReader(lambda: self.position() if self.position is not None else None)
        self._heartbeats: Heartbeats | None = None
        self._peers: dict[int, _Peer] = {}
        self._failures: dict[int, tuple[str, float]] = {}  # what ranks that failed have said, and when
        self._departure: _Departure | None = None
        self._anew = 0.0  # nothing before this moment counts
        self._last_beat = 0.0
        self._watched = 0
        self._joining = False  # the chief then answers at once, so that the others need not wait
        self._has_joined = False
        self._awake = threading.Event()
        self._error: BaseException | None = None
        self._ending = False  # the main thread waits to leave
        self._goodbye_said: float | None = None
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._config.enabled:
            self._watched = threading.get_ident()
            self._phase = replace(self._phase, began=time.monotonic())
            self._reader.start()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Says goodbye to the others. An error that may only be the consequence of another rank's is held back until that
        one is known, and then this process leaves with 70 from here."""
        if self._config.enabled:
            self._reader.stop()
            self._error, self._ending = error, True
            self._awake.set()
            self._thread.join()

    def join(self, distribution: Distribution) -> None:
        """Connects to the other ranks' watchdogs. All ranks call it together: collectives exchange what is needed.

        Raises BackendError, on all ranks, where one cannot reach the chief.
        """
        if not self._config.enabled:
            return
        self._rank, self._num_ranks, self._has_joined = distribution.rank, distribution.num_processes, True
        if self._num_ranks == 1:
            return
        connections, problem = heartbeats.connect(distribution, self._who, self._config.silence_seconds)
        if connections is not None:
            ranks, now = range(1, self._num_ranks) if self._rank == 0 else (0,), time.monotonic()
            # The chief is connected by now; the others come to it while it waits below.
            self._peers = {rank: _Peer(Report(rank, -1, "starting", 0.0, 0.0), now, connected=rank == 0) for rank in ranks}
            self._joining = True
            self._heartbeats = connections
            self._awake.set()
        failed = heartbeats.gather(distribution, int(problem is not None))
        self._joining = False
        if problem is not None:
            raise problem
        if any(failed):
            names = name_ranks([rank for rank, has_failed in enumerate(failed) if has_failed])
            raise BackendError(f"the watchdog of {names} has no connection to the others: see the message there")

    def phase(self, name: str, expected_seconds: float | None = None) -> None:
        """Notes that the run has made progress and now begins this phase. All ranks call it for the same phases, in the
        same order: a rank that has begun fewer is behind.

        The phase may last `times_expected` times `expected_seconds`, at least `least_seconds`; where it is not known what
        to expect, `startup_seconds`.
        """
        config = self._config
        limit = config.startup_seconds
        if expected_seconds is not None:
            limit = max(config.least_seconds, config.times_expected * expected_seconds)
        self._phase = _Phase(self._phase.number + 1, name, time.monotonic(), limit)

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:
            departure.say("the watchdog itself failed, and without it the run does not go on:\n" + traceback.format_exc())
            departure.leave(DrumlineError.exit_code)

    def _watch(self) -> None:
        while True:
            asked, pause = time.monotonic(), 0.02 if self._joining else _PAUSE_SECONDS
            self._awake.wait(pause)
            self._awake.clear()
            now = time.monotonic()
            if now - asked > pause + _SUSPENDED_SECONDS:
                self._anew = now
            if self._heartbeats is not None:
                for event in self._heartbeats.poll():
                    self._take(event, now)
            if self._ending:
                if self._has_taken_leave(now):
                    return
            else:
                own = self._own_report(now)
                self._send(own, now)
                self._judge_progress(own, now)
            self._judge_failures(now)
            if self._departure is not None and now >= self._departure.at:
                self._leave(self._departure)

    def _take(self, event: Event, now: float) -> None:
        peer, message = self._peers[event.rank], event.message
        peer.heard, peer.connected = now, True
        if message is None:
            peer.closed = now
            if not peer.said_goodbye:
                self._depart(_line_of_loss(peer.report, self._num_ranks), now + _AFTER_LOSS_SECONDS)
            return
        match message["kind"]:
            case "greeting":
                peer.report = replace(peer.report, who=message["who"])
            case "beat":
                peer.report = Report(**message["report"])
            case "goodbye":
                peer.said_goodbye = True
                if message["error"] is not None:
                    self._note_failure(event.rank, message["error"], now)
            case "failure":
                self._note_failure(message["rank"], message["error"], now)
            case "departure":
                self._depart(message["line"], now + message["seconds"], with_stacks=message["with_stacks"])

    def _send(self, own: Report, now: float) -> None:
        if self._heartbeats is not None and now - self._last_beat >= _BEAT_SECONDS:
            self._last_beat = now
            self._heartbeats.send({"kind": "beat", "report": vars(own)})

    def _own_report(self, now: float) -> Report:
        phase, position = self._phase, self._reader.last
        seconds = max(0.0, self._since(max(phase.began, position.changed), now))
        notes = []
        if seconds > _NOTE_AFTER_SECONDS:
            if position.stage and self._since(position.read, now) > _NOTE_AFTER_SECONDS:
                notes.append(f"its step not read for {self._since(position.read, now):.0f} s")
            notes.append(_whereabouts(self._watched))
        return Report(
            self._rank,
            phase.number,
            phase.name,
            seconds,
            phase.limit,
            position.step,
            position.stage,
            ", ".join(notes),
            has_moved=position.changed > phase.began,
            who=self._who,
        )

    def _judge_progress(self, own: Report, now: float) -> None:
        """The chief calls the roll of all ranks; the others only see whether it still speaks. Each is on its own before the
        ranks have joined, and when the chief has ended."""
        if self._departure is not None:
            return
        present = [peer for peer in self._peers.values() if not peer.said_goodbye and peer.closed is None]
        reports = [own]
        for peer in present:
            silent = self._since(peer.heard, now)
            if not peer.connected:  # not silent, but behind, with what it may take to start
                phase, limit = "connecting to the watchdog of rank 0", self._config.startup_seconds
                reports.append(replace(peer.report, phase=phase, seconds=silent, limit=limit))
            else:
                reports.append(replace(peer.report, silent_seconds=silent))
        if self._rank != 0 and present:
            reports = [replace(report, limit=float("inf")) for report in reports]
        verdict = roll_call(reports, self._num_ranks if present else 1, self._config.silence_seconds)
        if verdict is not None:
            self._depart(verdict.line, now + _PAUSE_SECONDS, with_stacks=True)

    def _note_failure(self, rank: int, error: str, now: float) -> None:
        """Once this rank has ended itself, what others say of their own end does not matter any more."""
        if self._goodbye_said is not None or rank == self._rank:
            return
        self._failures.setdefault(rank, (error, now))
        if self._rank == 0 and self._heartbeats is not None:
            self._heartbeats.send({"kind": "failure", "rank": rank, "error": error})

    def _judge_failures(self, now: float) -> None:
        """Leaves when the ranks that failed have had time to end by themselves, and have done so."""
        if not self._failures or self._departure is not None:
            return
        since = min(when for _, when in self._failures.values())
        seen = [self._peers[rank] for rank in (self._failures if self._rank == 0 else (0,))]
        over = all(peer.closed is not None and now - peer.closed > _AFTER_END_SECONDS for peer in seen)
        if now - since > (_FAILURE_SECONDS if over else _LONGEST_FAILURE_SECONDS):
            told = "; ".join(f"rank {rank} of {self._num_ranks} failed: {error}" for rank, (error, _) in self._failures.items())
            self._depart(told, now)

    def _depart(self, line: str, at: float, *, with_stacks: bool = False) -> None:
        """Decides to leave, once, says why, and lets the others know."""
        if self._departure is not None:
            return
        self._departure = _Departure(line, at, with_stacks)
        if self._rank == 0 and self._heartbeats is not None:
            seconds = max(0.0, at - time.monotonic())
            self._heartbeats.send({"kind": "departure", "line": line, "seconds": seconds, "with_stacks": with_stacks})
        departure.say(f"{line}; leaving with exit code {HangDetected.exit_code}")

    def _leave(self, reason: _Departure) -> None:
        if self._error is not None:
            departure.say(f"taken for a consequence of it, on rank {self._rank}: {_first_line(self._error)}")
        if self._heartbeats is not None:
            self._heartbeats.flush(_PAUSE_SECONDS)
        if reason.with_stacks:
            # Before it has joined the others a process does not know its rank.
            name = f"rank-{self._rank:05d}" if self._has_joined else f"process-{os.getpid()}"
            departure.write_stacks(f"Stacks of {name} ({self._who}). {reason.line}", self._directory / f"hang-{name}.txt")
        departure.leave(HangDetected.exit_code)

    def _has_taken_leave(self, now: float) -> bool:
        """Says goodbye. True when the main thread may go on to its end."""
        if self._heartbeats is None:
            return True
        if self._goodbye_said is None:
            self._goodbye_said = now
            has_failed = self._error is not None and not isinstance(self._error, Stopped)
            self._heartbeats.send({"kind": "goodbye", "error": _first_line(self._error) if has_failed else None})
        # Errors raised on purpose explain themselves. Any other may come from a collective that another rank has left.
        is_consequence = isinstance(self._error, Exception) and not isinstance(self._error, DrumlineError)
        if is_consequence:
            known = self._departure is not None or self._failures
            if now - self._goodbye_said < (_LONGEST_FAILURE_SECONDS + 1 if known else _FAILURE_SECONDS):
                return False
        self._heartbeats.flush(_PAUSE_SECONDS)
        self._heartbeats.close(at_exit=self._error is not None)
        return True

    def _since(self, moment: float, now: float) -> float:
        return now - max(moment, self._anew)


def _line_of_loss(last: Report, num_ranks: int) -> str:
    who = f" ({last.who})" if last.who else ""
    return f"rank {last.rank} of {num_ranks}{who} is gone: its connection closed during {last.place}"


def _first_line(error: BaseException | None) -> str:
    told = (str(error).splitlines() or [""])[0]
    return told if isinstance(error, DrumlineError) else f"{type(error).__name__}: {told}".rstrip(": ")


def _whereabouts(thread: int) -> str:
    """The line of the project's code at which a thread is, or, where there is none, the line of any code."""
    frame = innermost = sys._current_frames().get(thread)
    project = str(Path(__file__).parents[1])
    while frame is not None and not frame.f_code.co_filename.startswith(project):
        frame = frame.f_back
    frame = frame or innermost
    if frame is None:
        return "its main thread over"
    return f"at {frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
