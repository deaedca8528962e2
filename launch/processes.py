"""Processes of the operating system: started so that none outlives its launcher, found by descent, and ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from launch.plan import Process

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def start(process: Process, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that a Ctrl-C reaches it only once, through the launcher."""
    return subprocess.Popen(
        process.argv,
        env={**environment, **process.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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


def descendants(ancestor: int) -> list[int]:
    """All processes below one, the nearest first. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name stands in parentheses and may hold spaces; the parent is the second field after it.
            parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, level = [], children.get(ancestor, [])
    while level:
        found += level
        level = [grandchild for child in level for grandchild in children.get(child, [])]
    return found


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
