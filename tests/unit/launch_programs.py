"""Launchers and workers for the tests of launching: real processes without TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The launcher under test: `{workers}` programs, each with its rank as argument.
LAUNCHER = """
import logging, sys
from launch import local
from launch.plan import Process
from launch.requests import Requests
logging.basicConfig(level=logging.INFO, format="%(message)s")
program, count = sys.argv[1], int(sys.argv[2])
workers = [Process(str(rank), (sys.executable, "-u", "-c", program, str(rank))) for rank in range(count)]
with Requests() as requests:
    sys.exit(local.run(workers, requests, grace_seconds=1.0))
"""

# A worker that says where it is, and that saves when it is asked to stop.
STOPPABLE = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(0.3)
    print("saved after", signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("pid", os.getpid())
time.sleep(60)
"""

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN);"

HOROVOD_LAUNCHER = """
import logging, sys
from launch import horovod
from launch.machine import find_machine
from launch.plan import Plan, Process
from launch.requests import Requests
logging.basicConfig(level=logging.INFO, format="%(message)s")
count, hosts = int(sys.argv[2]), tuple((host, 1) for host in sys.argv[3:])
options = ("--disable-cache", "-H", ",".join(f"{host}:1" for host in sys.argv[3:])) if hosts else ()
command = (find_machine().horovodrun, "--gloo", "-np", str(count), *options, sys.executable, "-u", "-c", sys.argv[1])
with Requests() as requests:
    outcome = horovod.run(Plan("horovod", (Process("horovodrun", command),), count, None, hosts), requests)
print("failed hosts:", *outcome.failed_hosts, file=sys.stderr)
sys.exit(outcome.exit_code)
"""

# Stands for ssh: runs the command here, in a session that does not end with it, or fails for a host that has a file in DOWN.
SSH = f"""\
#!{sys.executable}
import os, subprocess, sys, threading
words = sys.argv[1:]
while words[0].startswith("-"):
    del words[:2]
host = words.pop(0)
while words[0].startswith("-"):
    del words[:2]
if os.path.exists(os.path.join(os.environ["DOWN"], host)):
    print(f"ssh: {{host}} is down", file=sys.stderr)
    sys.exit(255)
there = subprocess.Popen(" ".join(words), shell=True, stdout=-1, stderr=-1, start_new_session=True)
def pump(source, drain):
    while content := os.read(source.fileno(), 65536):
        os.write(drain, content)
pumps = [threading.Thread(target=pump, args=pair) for pair in ((there.stdout, 1), (there.stderr, 2))]
for each in pumps:
    each.start()
for each in pumps:
    each.join()
sys.exit(there.wait() % 256)
"""


def launch(program: str, num_workers: int, launcher: str = LAUNCHER, *more: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", launcher, program, str(num_workers), *more],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program: str, num_workers: int, launcher: str = LAUNCHER, *more: str, **env: str) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout in order of rank, and stderr."""
    launched = launch(program, num_workers, launcher, *more, **env)
    out, err = launched.communicate(timeout=60)
    return launched.returncode, sorted(out.splitlines()), err


def read_pids(launched: subprocess.Popen[str], count: int) -> list[int]:
    """Waits until all workers have said their process number."""
    assert launched.stdout is not None
    return [int(launched.stdout.readline().split()[-1]) for _ in range(count)]


def are_gone(pids: list[int], seconds: float = 10.0) -> bool:
    return becomes_true(lambda: not any(is_alive(pid) for pid in pids), seconds)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
