"""Runs `horovodrun`, and mends what it loses on the way: exit codes of ranks, and time to save when asked to stop.

`horovodrun` (0.28.1) exits with 1 whatever a rank exited with, and tells the code only in a traceback: 137 for a rank that
was killed, since a shell stands between. On a signal, and when one rank has ended with anything but 0, it gives the ranks
five seconds (`GRACEFUL_TERMINATION_TIME_S` in horovod/runner/common/util/safe_shell_exec.py), too few to save a large model.
So its output is read, and a signal goes to the ranks themselves, which end together.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from launch import local, processes, ranks
from launch.plan import Plan
from launch.requests import Requests
from trainer.errors import HangDetected, Stopped

logger = logging.getLogger(__name__)

_RANK_LINE = re.compile(r"^\[(\d+)\]<(?:stdout|stderr)>:(.*)$", re.DOTALL)
_TRACEBACK = "Traceback (most recent call last)"
# Its end, about the first rank that failed. A code below 0 is of its own process around the rank.
_PROCESS_NAME = re.compile(r"^Process name: (\d+)$")
_EXIT_CODE = re.compile(r"^Exit code: (-?\d+)$")
# Written by several threads, the end of the line after the line: more can stand behind it, and a line be empty.
_ENDED = re.compile(r"^Process \d+ exit with status code -?\d+\.|^Terminating remaining workers after failure of Process \d+\.")
_UNREACHABLE = re.compile(r"^ssh not successful for host (\S+):$")
_SSH_FAILED = 255
_TIMED_OUT = "TimeoutException: Timed out waiting"
# What the watchdog of a rank says of others.
_LOST_RANK = re.compile(r"\bdid not arrive: ranks? (\d+)\b|\brank (\d+) of \d+.* is gone:")
_THIS_MACHINE = ("localhost", "127.0.0.1")

_LOOK_EVERY_SECONDS = 1.0
_LEFTOVERS_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code of the whole, and the machines whose ranks failed, as far as that is known."""

    exit_code: int
    failed_hosts: tuple[str, ...] = ()


def run(plan: Plan, requests: Requests, change: Callable[[], str | None] = lambda: None) -> Outcome:
    """Runs the `horovodrun` of a plan to its end. With a `change`, which says why, the ranks are asked to save and stop."""
    output, gang = _Output(), _Gang(plan, processes.new_mark())

    def look() -> str | None:
        gang.look()
        return change()

    exit_code = local.run(plan.processes, requests, mark=gang.mark, translate=output.translate, send=gang.send, change=look)
    if output.unreachable:
        logger.error("No connection over ssh to %s.", ", ".join(output.unreachable))
        return Outcome(HangDetected.exit_code, tuple(output.unreachable))
    if output.failed_rank is None:
        for line in output.traceback:
            print(line, file=sys.stderr)
        # Between its first look at the machines and the start of the ranks one may go.
        lost = plan.hosts and (exit_code == _SSH_FAILED or any(_TIMED_OUT in line for line in output.traceback))
        return Outcome(HangDetected.exit_code if lost else exit_code)
    # Between its start and its first step nothing in a rank turns a signal into 75.
    if output.exit_code in (Stopped.exit_code, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        return Outcome(Stopped.exit_code)
    host = plan.host_of(output.failed_rank)
    if output.exit_code == _SSH_FAILED and host not in _THIS_MACHINE:
        logger.error("Worker %d is lost: the connection to %s broke off.", output.failed_rank, host)
        return Outcome(HangDetected.exit_code, (host,))
    logger.error("Worker %d failed with exit code %d.", output.failed_rank, output.exit_code)
    # A rank that leaves with 70 has found the fault with another.
    culprits = output.lost_ranks if output.exit_code == HangDetected.exit_code else [output.failed_rank]
    return Outcome(output.exit_code, tuple(dict.fromkeys(plan.host_of(rank) for rank in culprits)))


@dataclass
class _Output:
    """Gives the lines of ranks the prefix that they have everywhere, and keeps `horovodrun`'s own traceback back."""

    failed_rank: int | None = None
    exit_code: int = 0
    lost_ranks: list[int] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    traceback: list[str] = field(default_factory=list)

    def translate(self, name: str, line: str) -> str | None:
        while match := _ENDED.match(line):
            line = line[match.end() :]
        if match := _RANK_LINE.match(line):
            if lost := _LOST_RANK.search(match[2]):
                self.lost_ranks.append(int(next(filter(None, lost.groups()))))
            return local.prefix(match[1], match[2])
        # It imports TensorFlow, too, just to see whether it is there.
        if not line or local.prefix(name, line) is None:
            return None
        if match := _UNREACHABLE.match(line):
            self.unreachable.append(match[1])
        if self.traceback or _TRACEBACK in line:  # behind what a thread of it has begun to write
            self.traceback.append(line)
            if match := _PROCESS_NAME.match(line):
                self.failed_rank = int(match[1])
            if match := _EXIT_CODE.match(line):
                code = int(match[1])
                self.exit_code = 128 - code if code < 0 else code
            return None
        return line


@dataclass
class _Gang:
    """The ranks below one `horovodrun`."""

    plan: Plan
    mark: str
    known: set[int] = field(default_factory=set)  # of those on this machine
    looked: float = 0.0
    gone_since: float | None = None

    def send(self, horovodrun: int, number: int) -> bool:
        """A signal goes to the ranks of this machine, else to those of another; to `horovodrun` where there are none yet."""
        if ranks.send(self.mark, number):
            return True
        if self._is_here():
            return number != signal.SIGUSR1 and processes.send(horovodrun, number)
        # In a thread: connections take their time, and the output of the ranks must go on flowing.
        threading.Thread(target=self._send_elsewhere, args=(horovodrun, number), daemon=True).start()
        return True

    def look(self) -> None:
        """Ends what the ranks left behind when all are gone: `horovodrun` waits as long as one of them holds its pipes."""
        now = time.monotonic()
        if not self._is_here() or now - self.looked < _LOOK_EVERY_SECONDS:
            return
        self.looked = now
        if len(self.known) < self.plan.num_workers:
            self.known.update(processes.horovod_ranks(self.mark))
        elif self.gone_since is None:
            if not any(processes.is_running(pid) for pid in self.known):
                self.gone_since = now
        elif now - self.gone_since > _LEFTOVERS_SECONDS:
            for pid in processes.in_ranks(self.mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _is_here(self) -> bool:
        return all(host in _THIS_MACHINE for host, _ in self.plan.hosts)

    def _send_elsewhere(self, horovodrun: int, number: int) -> None:
        hosts = [host for host, _ in self.plan.hosts if host not in _THIS_MACHINE]
        if not ranks.send_over_ssh(hosts, self.plan.ssh_port, self.mark, number) and number != signal.SIGUSR1:
            processes.send(horovodrun, number)
