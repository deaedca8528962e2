"""Runs `horovodrun`, and mends what it loses on the way: exit codes of ranks, and time to save when asked to stop.

`horovodrun` (0.28.1) exits with 1 whatever a rank exited with, and tells the code only in a traceback. On a signal, and
when one rank has ended with anything but 0, it gives the ranks five seconds (`GRACEFUL_TERMINATION_TIME_S` in
horovod/runner/common/util/safe_shell_exec.py), too few to save a large model. So its output is read, and a signal goes
to the ranks themselves, which end together. Ranks on other hosts are out of reach: there it goes to `horovodrun`.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from launch import local, processes
from launch.plan import Process
from trainer.errors import Stopped

logger = logging.getLogger(__name__)

_RANK_LINE = re.compile(r"^\[(\d+)\]<(?:stdout|stderr)>:(.*)$", re.DOTALL)
# The end of the traceback, about the first rank that failed.
_PROCESS_NAME = re.compile(r"^Process name: (\d+)$")
_EXIT_CODE = re.compile(r"^Exit code: (\d+)$")
_SAID_BETTER = re.compile(r"^(?:Process \d+ exit with status code|Terminating remaining workers)")


def run(horovodrun: Process) -> int:
    """Runs `horovodrun` to its end; the exit code of the rank that failed first, where one did."""
    output = _Output()
    exit_code = local.run([horovodrun], translate=output.translate, recipients=_ranks)
    if output.failed_rank is None:
        for line in output.traceback:
            print(line, file=sys.stderr)
        return exit_code
    # Between its start and its first step nothing in a rank turns a signal into 75.
    if output.exit_code in (Stopped.exit_code, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        return Stopped.exit_code
    logger.error("Worker %d failed with exit code %d.", output.failed_rank, output.exit_code)
    return output.exit_code


@dataclass
class _Output:
    """Gives the lines of ranks the prefix that they have everywhere, and keeps `horovodrun`'s own traceback back."""

    failed_rank: int | None = None
    exit_code: int = 0
    traceback: list[str] = field(default_factory=list)

    def translate(self, name: str, line: str) -> str | None:
        if match := _RANK_LINE.match(line):
            return local.prefix(match[1], match[2])
        # It imports TensorFlow, too, just to see whether it is there.
        if local.prefix(name, line) is None or _SAID_BETTER.match(line):
            return None
        if self.traceback or line.startswith("Traceback (most recent call last)"):
            self.traceback.append(line)
            if match := _PROCESS_NAME.match(line):
                self.failed_rank = int(match[1])
            if match := _EXIT_CODE.match(line):
                self.exit_code = int(match[1])
            return None
        return line


def _ranks(horovodrun: int) -> list[int]:
    """The training processes below `horovodrun`, or itself where there are none on this machine.

    They are known by the variable that it sets, and are the first below it that have it: their children inherit it.
    """
    found: list[int] = []
    below: set[int] = set()
    for pid in processes.descendants(horovodrun):
        if pid not in below and _is_rank(pid):
            found.append(pid)
            below.update(processes.descendants(pid))
    return found or [horovodrun]


def _is_rank(pid: int) -> bool:
    try:
        return b"\0HOROVOD_RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended meanwhile
        return False
