"""Runs the processes of a plan on this machine until all are done: output, signals, failures."""

from __future__ import annotations

import codecs
import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, NoReturn, TextIO

from launch import processes
from launch.plan import Process
from trainer.errors import Stopped

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_STOPPED = Stopped.exit_code

# What TensorFlow's C++ tells at every import, twice, before it looks at TF_CPP_MIN_LOG_LEVEL. Only information is meant
# here, never a warning or an error; from each of eight workers it would bury the first lines that matter.
TENSORFLOW_NOTICE = re.compile(
    r"^I\d{4} \d\d:\d\d:|^WARNING: All log messages before absl|^To enable the following instructions"
)


def become(process: Process) -> NoReturn:
    """Runs a single process in place of this one: it has the terminal, the signals and the exit code to itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(process.argv[0], process.argv, {**os.environ, **process.env})


def run(
    planned: Sequence[Process],
    *,
    translate: Callable[[str, str], str | None] | None = None,
    recipients: Callable[[int], list[int]] = lambda pid: [pid],
    grace_seconds: float = 15.0,
) -> int:
    """Starts processes and waits for all; the exit code of the whole.

    Each line of output goes out as `translate(name, line)`, by default `prefix`, unless that is None. SIGTERM and
    SIGINT are passed on once, to the `recipients` of each process; at the second one all are killed. Where one fails
    the others are asked to end, and killed after `grace_seconds`. The exit code is that of the first that failed by
    itself; 75 where none failed and one was stopped.
    """
    crew = _Crew(translate or prefix, recipients, grace_seconds)
    with _signals_to(crew.requests.append), selectors.DefaultSelector() as selector:
        try:
            for process in planned:
                crew.add(_Member(process.name, processes.start(process, os.environ)), selector)
            while not all(member.done for member in crew.members):
                _pump(selector, _POLL_SECONDS)
                crew.look_after()
            # What is still in the pipes. No longer than it flows: a daemon that a worker left may hold one open.
            while _pump(selector, _POLL_SECONDS):
                pass
        finally:
            crew.end()
    return crew.exit_code()


def prefix(name: str, line: str) -> str | None:
    """A worker's line with its name before it; None for a notice of TensorFlow's."""
    return None if TENSORFLOW_NOTICE.match(line) else f"[{name}] {line}"


@dataclass
class _Member:
    """A process that was started, and what became of it: its exit code, or 128 and the signal that ended it."""

    name: str
    running: subprocess.Popen[bytes]
    exit_code: int | None = None

    @property
    def done(self) -> bool:
        return self.exit_code is not None


@dataclass
class _Crew:
    """The processes of a run, which end together."""

    translate: Callable[[str, str], str | None]
    recipients: Callable[[int], list[int]]
    grace_seconds: float
    members: list[_Member] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)  # signals that came in
    stopping: bool = False
    killed: bool = False
    failed: _Member | None = None
    deadline: float | None = None

    def add(self, member: _Member, selector: selectors.BaseSelector) -> None:
        self.members.append(member)
        for pipe, out in ((member.running.stdout, sys.stdout), (member.running.stderr, sys.stderr)):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, _Stream(pipe, out, member.name, self.translate))

    def look_after(self) -> None:
        """Passes on what was asked for, notes who is done, and ends the others where one failed."""
        while self.requests:
            self._stop(self.requests.pop(0))
        for member in self.members:
            if not member.done and processes.has_ended(member.running):
                processes.kill(member.running)  # what it left behind in its group
                status = member.running.wait()
                member.exit_code = 128 - status if status < 0 else status
                self._judge(member)
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.deadline = None
            logger.warning("Some did not end within %g s: killing them.", self.grace_seconds)
            self._kill()

    def exit_code(self) -> int:
        if self.failed is not None:
            assert self.failed.exit_code is not None
            return self.failed.exit_code
        return _STOPPED if any(member.exit_code for member in self.members) else 0

    def end(self) -> None:
        """Leaves nothing behind, whatever happened."""
        self._kill()
        for member in self.members:
            if not member.done:
                member.running.wait()

    def _stop(self, signum: int) -> None:
        if self.stopping:
            self.killed = True
            self._kill()
            return
        self.stopping = True
        logger.info("%s: waiting for the workers to save and stop; a second one kills them.", signal.Signals(signum).name)
        self._signal(signum)

    def _judge(self, member: _Member) -> None:
        # Between the start and the first step there is nobody to turn a signal into 75.
        by_signal = member.exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        died_of_the_request = self.killed or (self.stopping and by_signal)
        if member.exit_code in (0, _STOPPED) or died_of_the_request or self.failed is not None:
            return
        self.failed = member
        if len(self.members) > 1:
            logger.error("Worker %s failed with exit code %d; ending the others.", member.name, member.exit_code)
        self._signal(signal.SIGTERM)
        self.deadline = time.monotonic() + self.grace_seconds

    def _signal(self, signum: int) -> None:
        for member in self.members:
            if not member.done:
                for pid in self.recipients(member.running.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signum)

    def _kill(self) -> None:
        for member in self.members:
            if not member.done:
                processes.kill(member.running)


@dataclass
class _Stream:
    """One output of one process, on its way to ours, a whole line at a time."""

    pipe: IO[bytes]
    out: TextIO
    name: str
    translate: Callable[[str, str], str | None]
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"))
    unfinished: str = ""

    def pump(self, selector: selectors.BaseSelector) -> None:
        try:
            content = os.read(self.pipe.fileno(), 65536)
        except BlockingIOError:
            return
        *lines, self.unfinished = (self.unfinished + self.decoder.decode(content, final=not content)).split("\n")
        if not content:
            selector.unregister(self.pipe)
            self.pipe.close()
            lines += [self.unfinished] if self.unfinished else []
        for line in lines:
            told = self.translate(self.name, line)
            if told is not None:
                self.out.write(told + "\n")
        self.out.flush()


def _pump(selector: selectors.BaseSelector, seconds: float) -> bool:
    """Passes on what comes out of the workers, waiting for it at most so long. Whether anything came."""
    if not selector.get_map():
        time.sleep(seconds)
        return False
    ready = selector.select(seconds)
    for key, _ in ready:
        key.data.pump(selector)
    return bool(ready)


@contextmanager
def _signals_to(receive: Callable[[int], None]) -> Iterator[None]:
    def handle(signum: int, frame: FrameType | None) -> None:
        receive(signum)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
