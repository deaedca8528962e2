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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, NoReturn, TextIO

from launch import processes
from launch.plan import Process
from launch.requests import Requests
from trainer.errors import Stopped

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_STOPPED = Stopped.exit_code
# To save a large model after a change, or for the watchdog of the workers to see that some of them are gone.
_CHANGE_SECONDS = 600.0

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
    requests: Requests,
    *,
    in_terminal: bool = False,
    mark: str | None = None,
    translate: Callable[[str, str], str | None] | None = None,
    send: Callable[[int, int], bool] = processes.send,
    change: Callable[[], str | None] = lambda: None,
    change_seconds: float = _CHANGE_SECONDS,
    choose: Callable[[Sequence[int]], int] = lambda exit_codes: exit_codes[0],
    grace_seconds: float = 15.0,
) -> int:
    """Starts processes and waits for all; the exit code of the whole.

    Each line of output goes out as `translate(name, line)`, by default `prefix`, unless that is None; a process that runs
    `in_terminal` writes where the launcher does. SIGTERM and SIGINT are passed on once, at the second one all are killed;
    SIGUSR1 goes to those that listen for it. `send(pid, signal)` is how a process gets a signal. `change` is called several
    times a second; when it returns a reason, the processes are asked to save and stop as by SIGTERM, and killed after
    `change_seconds`. Where one fails the others are asked to end, and killed after `grace_seconds`. The exit code is what
    `choose` takes of those that failed by themselves, by default the first; 75 where none failed and one was stopped. Whatever
    happens, nothing that has the `mark` of this launch is left.
    """
    mark = mark or processes.new_mark()
    crew = _Crew(mark, requests, translate or prefix, send, change, change_seconds, choose, grace_seconds)
    with selectors.DefaultSelector() as selector:
        try:
            for process in planned:
                started = processes.start(process, crew.mark, in_terminal=in_terminal)
                crew.add(_Member(process.name, started), selector)
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

    mark: str
    requests: Requests
    translate: Callable[[str, str], str | None]
    send: Callable[[int, int], bool]
    change: Callable[[], str | None]
    change_seconds: float
    choose: Callable[[Sequence[int]], int]
    grace_seconds: float
    members: list[_Member] = field(default_factory=list)
    stopping: bool = False  # for whatever reason
    asked: bool = False  # to stop, by a signal
    killed: bool = False
    failures: list[int] = field(default_factory=list)  # exit codes
    patience: _Patience | None = None

    def add(self, member: _Member, selector: selectors.BaseSelector) -> None:
        self.members.append(member)
        for pipe, out in ((member.running.stdout, sys.stdout), (member.running.stderr, sys.stderr)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, _Stream(pipe, out, member.name, self.translate))

    def look_after(self) -> None:
        """Passes on what was asked for, notes who is done, and ends the others where one failed."""
        for number in self.requests.take():
            self._obey(number)
        if not self.stopping and not self.failures and (reason := self.change()):
            logger.info("%s; asking the workers to save and stop.", reason)
            self._stop(signal.SIGTERM)
            self.patience = _Patience(self.change_seconds)
        for member in self.members:
            if not member.done and processes.has_ended(member.running):
                processes.kill(member.running)  # what it left behind in its group
                status = member.running.wait()
                member.exit_code = 128 - status if status < 0 else status
                self._judge(member)
        if self.patience is not None and self.patience.is_over():
            logger.warning("Some did not end within %g s: killing them.", self.patience.seconds)
            self.patience = None
            self._kill()

    def exit_code(self) -> int:
        if self.failures:
            return self.choose(self.failures)
        return _STOPPED if any(member.exit_code for member in self.members) else 0

    def end(self) -> None:
        """Leaves nothing behind, whatever happened."""
        self._kill()
        for member in self.members:
            if not member.done:
                member.running.wait()

    def _obey(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGUSR1:
            if not self.stopping:
                heard = self._signal(number)
                told = "asked the workers to save and go on" if heard else "no worker listens for it yet"
                logger.info("%s: %s.", name, told)
        elif self.asked:
            self.killed = True
            self._kill()
        else:
            self.asked = True
            logger.info("%s: waiting for the workers to save and stop; a second one kills them.", name)
            if not self.stopping:
                self._stop(number)

    def _stop(self, number: int) -> None:
        self.stopping = True
        self._signal(number)

    def _judge(self, member: _Member) -> None:
        # Between the start and the first step there is nobody to turn a signal into 75.
        by_signal = member.exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        died_of_the_request = self.killed or (self.stopping and by_signal)
        assert member.exit_code is not None
        if member.exit_code in (0, _STOPPED) or died_of_the_request:
            return
        if self.failures:
            # Unless it died of what followed from the first.
            if not by_signal and member.exit_code != 128 + signal.SIGKILL:
                self.failures.append(member.exit_code)
            return
        self.failures.append(member.exit_code)
        if len(self.members) > 1:
            logger.error("Worker %s failed with exit code %d; ending the others.", member.name, member.exit_code)
        self._signal(signal.SIGTERM)
        self.patience = _Patience(self.grace_seconds)

    def _signal(self, number: int) -> bool:
        """Whether it reached anyone."""
        return any([self.send(member.running.pid, number) for member in self.members if not member.done])

    def _kill(self) -> None:
        for member in self.members:
            if not member.done:
                processes.kill(member.running)
        processes.kill_marked(self.mark)


@dataclass
class _Patience:
    """How long is waited for processes that were asked to end."""

    seconds: float
    since: float = field(default_factory=time.monotonic)

    def is_over(self) -> bool:
        return time.monotonic() - self.since > self.seconds


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
