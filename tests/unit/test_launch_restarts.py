"""Which runs are started again, after which pause, and when no more; then with real processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.restarts import Restart, Restarts, why
from tests.unit.launch_programs import ROOT, is_alive

RESTARTABLE = [75, 70, 137, 134, 139, 143]
FINAL = [0, 1, 2, 3, 255, 128]


@pytest.mark.parametrize("exit_code", RESTARTABLE)
def test_a_run_that_was_interrupted_is_started_again(exit_code: int) -> None:
    assert Restarts(3, 5.0).after(exit_code, 10.0) == Restart(1, 5.0)


@pytest.mark.parametrize("exit_code", FINAL)
def test_a_run_that_would_end_the_same_way_is_not(exit_code: int) -> None:
    assert why(exit_code) is None
    assert Restarts(3, 5.0).after(exit_code, 10.0) is None


def test_the_pause_doubles_up_to_five_minutes() -> None:
    restarts = Restarts(9, 5.0)
    pauses = [restart.pause_seconds for _ in range(9) if (restart := restarts.after(70, 10.0))]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert restarts.after(70, 10.0) is None


def test_after_an_hour_of_running_the_count_begins_anew() -> None:
    restarts = Restarts(2, 5.0)
    assert [restarts.after(75, 10.0), restarts.after(75, 10.0)] == [Restart(1, 5.0), Restart(2, 10.0)]
    assert restarts.after(75, 3600.0) == Restart(1, 5.0)


def test_without_restarts_nothing_is_started_again() -> None:
    assert Restarts(0, 5.0).after(75, 7200.0) is None


# The launcher as the command line has it, with a program in place of the training: `{pause}` and `{restarts}`.
LAUNCHER = """
import logging, sys
from launch import local, restarts
from launch.plan import Process
from launch.requests import Requests
logging.basicConfig(level=logging.INFO, format="%(message)s")
program, at_most, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with Requests() as requests:
    def start(is_first):
        return local.run([Process("0", (sys.executable, "-u", "-c", program, str(is_first)))], requests, in_terminal=True)
    sys.exit(restarts.run(start, restarts.Restarts(at_most, pause), requests))
"""

# A program that ends with the next of the codes in a file each time; below 0 by a signal.
ENDINGS = """
import os, sys
from pathlib import Path
path = Path({path!r})
first, *others = path.read_text().split()
path.write_text(" ".join(others))
print("first" if sys.argv[1] == "True" else "again", first)
if int(first) < 0:
    os.kill(os.getpid(), -int(first))
sys.exit(int(first))
"""


def run(tmp_path: Path, endings: str, at_most: int = 3) -> tuple[int, list[str], list[str]]:
    path = tmp_path / "endings"
    path.write_text(endings)
    argv = [sys.executable, "-c", LAUNCHER, ENDINGS.format(path=str(path)), str(at_most), "0.05"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_it_goes_on_until_the_run_is_done(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "75 70 -9 0")
    assert code == 0
    assert out == ["first 75", "again 70", "again -9", "again 0"]
    expected = [
        r"The run ended with exit code 75: it was stopped, but not from here\. Restart 1 of 3 at \d\d:\d\d:\d\d, in 0\.05 s\.",
        r"The run ended with exit code 70: a worker hung or was lost\. Restart 2 of 3 at \d\d:\d\d:\d\d, in 0\.1 s\.",
        r"The run ended with exit code 137: a worker was ended by SIGKILL\. Restart 3 of 3 at \d\d:\d\d:\d\d, in 0\.2 s\.",
    ]
    assert len(err) == 3
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, err, strict=True)), err


@pytest.mark.parametrize("final", ["2", "3", "1"])
def test_it_stops_where_starting_again_would_not_help(final: str, tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, f"75 {final} 0")
    assert (code, len(out)) == (int(final), 2)


def test_it_gives_up_and_says_so(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "75 75 70 0", at_most=2)
    assert (code, len(out)) == (70, 3)
    assert err[-1] == "The run ended with exit code 70: a worker hung or was lost. Giving up after 2 restarts (--restarts)."


def test_without_restarts_it_is_silent(tmp_path: Path) -> None:
    assert run(tmp_path, "70 0", at_most=0) == (70, ["first 70"], [])


def start(program: str, pause: float) -> subprocess.Popen[str]:
    argv = [sys.executable, "-u", "-c", LAUNCHER, program, "3", str(pause)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_pause_ends_it_at_once(number: signal.Signals) -> None:
    launched = start("import sys; sys.exit(70)", pause=60.0)
    assert launched.stderr is not None
    assert "Restart 1 of 3" in launched.stderr.readline()
    launched.send_signal(signal.SIGUSR1)  # nothing runs that could save: no reason to end
    time.sleep(0.3)
    assert launched.poll() is None
    began = time.monotonic()
    launched.send_signal(number)
    _, err = launched.communicate(timeout=30)
    assert (launched.returncode, err) == (75, "Asked to stop: the run is not started again.\n")
    assert time.monotonic() - began < 2.0


def test_a_run_that_was_asked_to_stop_stays_stopped() -> None:
    launched = start("import os, time; print('pid', os.getpid()); time.sleep(60)", pause=0.1)
    assert launched.stdout is not None
    pid = int(launched.stdout.readline().split()[-1])
    launched.terminate()
    _, err = launched.communicate(timeout=30)
    assert launched.returncode == 75
    assert "Restart" not in err
    assert not is_alive(pid)
