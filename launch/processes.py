"""Processes of the operating system: started so that none outlives its launcher, found by descent or by a mark, and ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from launch.plan import Process

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Set for all processes of a launch, which hand it down to theirs, on other machines too: it finds those that have left
# their parents, which descent does not.
_MARK = "DRUMLINE_LAUNCH"


def new_mark() -> str:
    return uuid.uuid4().hex


def start(
    process: Process, mark: str, *, in_terminal: bool = False, output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that a Ctrl-C reaches it only once, through the launcher.

    Its output is piped here, or goes to the file `output`, or, with `in_terminal`, where the launcher's own goes.
    """
    pipe = None if in_terminal else output or subprocess.PIPE
    return subprocess.Popen(
        process.argv,
        env={**os.environ, **process.env, _MARK: mark},
        stdin=None if in_terminal else subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),
    )


def has_ended(running: subprocess.Popen[bytes]) -> bool:
    """Whether a process is over; it keeps its number until it is waited for, so that its group can still be ended."""
    if running.returncode is not None:
        return True
    return os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(running: subprocess.Popen[bytes]) -> None:
    """Ends a process that was not yet waited for, its group, and all that descends from it, at once."""
    pids = descendants(running.pid)
    _ignore_the_gone(os.killpg, running.pid)
    for pid in pids:
        _ignore_the_gone(os.kill, pid)


def kill_marked(mark: str) -> None:
    """Ends all processes of a launch on this machine, at once, stopped ones and those without a parent too."""
    for _ in range(20):  # again, for those that were started meanwhile
        pids = marked(mark)
        for pid in pids:
            _ignore_the_gone(os.kill, pid)
        if not pids:
            return
        time.sleep(0.05)


def descendants(ancestor: int) -> list[int]:
    """All processes below one, the nearest first. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found, level = [], children.get(ancestor, [])
    while level:
        found += level
        level = [grandchild for child in level for grandchild in children.get(child, [])]
    return found


def marked(mark: str) -> list[int]:
    """All processes of a launch on this machine. Empty where there is no /proc."""
    return [pid for pid in _pids() if _has_variable(pid, _MARK, mark)]


def horovod_ranks(mark: str) -> list[int]:
    """The ranks of a launch on this machine: the topmost processes of `in_ranks`."""
    candidates = in_ranks(mark)
    parents = _parents()
    return [pid for pid in candidates if parents.get(pid) not in candidates]


def in_ranks(mark: str) -> list[int]:
    """The ranks of a launch on this machine and all that they started, which have the variable that `horovodrun` sets."""
    return [pid for pid in marked(mark) if _has_variable(pid, "HOROVOD_RANK")]


def is_running(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listens(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal, rather than what the system does to it by default."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # ended meanwhile, or there is no /proc
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def send(pid: int, number: int) -> bool:
    """Sends a signal, SIGUSR1 only to who listens: by default it ends a process. Whether it was sent."""
    if number == signal.SIGUSR1 and not listens(pid, number):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _has_variable(pid: int, name: str, value: str | None = None) -> bool:
    """Whether a process was started with an environment variable, of this value where one is given."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return False
    if value is not None:
        return f"{name}={value}".encode() in variables
    return any(variable.startswith(f"{name}=".encode()) for variable in variables)


def _parents() -> dict[int, int]:
    """The parent of each process."""
    parents = {}
    for pid in _pids():
        with suppress(OSError):  # ended meanwhile
            # The name stands in parentheses and may hold spaces; the parent is the second field after it.
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            parents[pid] = int(stat.rpartition(")")[2].split()[1])
    return parents


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))


def _ignore_the_gone(end: Callable[[int, int], None], pid: int) -> None:
    with suppress(ProcessLookupError):
        end(pid, signal.SIGKILL)


def _die_with(launcher: int) -> Callable[[], None] | None:
    """What a child does before it becomes the program: it asks Linux to kill it when the launcher dies, of any cause.

    Killed rather than asked to stop: that costs the steps since the last checkpoint, and is certain.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before we asked
            os._exit(1)

    return ask
