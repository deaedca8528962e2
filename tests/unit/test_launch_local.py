"""Real processes under the launcher: their output, signals to them, failures, and that none is left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.machine import find_machine, free_ports

ROOT = Path(__file__).parents[2]

# The launcher under test: `{workers}` programs, each with its rank as argument.
LAUNCHER = """
import logging, sys
from launch import local
from launch.plan import Process
logging.basicConfig(level=logging.INFO, format="%(message)s")
program, count = sys.argv[1], int(sys.argv[2])
workers = [Process(str(rank), (sys.executable, "-u", "-c", program, str(rank))) for rank in range(count)]
sys.exit(local.run(workers, grace_seconds=1.0))
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
from launch.plan import Process
logging.basicConfig(level=logging.INFO, format="%(message)s")
command = (find_machine().horovodrun, "--gloo", "-np", sys.argv[2], sys.executable, "-u", "-c", sys.argv[1])
sys.exit(horovod.run(Process("horovodrun", command)))
"""


def launch(program: str, num_workers: int, launcher: str = LAUNCHER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", launcher, program, str(num_workers)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program: str, num_workers: int, launcher: str = LAUNCHER) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout in order of rank, and stderr."""
    launched = launch(program, num_workers, launcher)
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


def test_every_line_has_the_rank_before_it() -> None:
    code, out, err = run("import sys; print('one\\ntwo'); print('three', end=''); print('bad', file=sys.stderr)", 2)
    assert code == 0
    assert out == ["[0] one", "[0] three", "[0] two", "[1] one", "[1] three", "[1] two"]
    assert sorted(err.splitlines()) == ["[0] bad", "[1] bad"]


def test_output_that_is_no_text_and_a_lot_of_it_passes() -> None:
    program = "import sys; sys.stdout.buffer.write(b'\\xff\\n' + 'é'.encode() * 100_000 + b'\\n' + b'x\\n' * 50_000)"
    code, out, _ = run(program, 1)
    assert code == 0
    assert len(out) == 50_002
    assert "[0] " + "é" * 100_000 in out


def test_the_failed_worker_is_named_and_the_others_are_ended() -> None:
    program = "import sys, time; sys.argv[1] == '1' and sys.exit(3); time.sleep(60)"
    began = time.monotonic()
    code, _, err = run(program, 3)
    assert code == 3
    assert err == "Worker 1 failed with exit code 3; ending the others.\n"
    assert time.monotonic() - began < 10


def test_a_worker_that_does_not_listen_is_killed_after_the_grace() -> None:
    program = f"{STUBBORN} import sys, time; sys.argv[1] == '1' and (time.sleep(0.3), sys.exit(3)); time.sleep(60)"
    code, _, err = run(program, 2)
    assert code == 3
    assert "did not end within 1 s: killing" in err


def test_a_worker_that_a_signal_ended_counts_as_failed() -> None:
    code, _, err = run("import os, sys, time; sys.argv[1] == '0' and os.kill(os.getpid(), 9); time.sleep(60)", 2)
    assert code == 137
    assert "Worker 0 failed with exit code 137" in err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_workers_which_may_save(signum: signal.Signals) -> None:
    launched = launch(STOPPABLE, 2)
    pids = read_pids(launched, 2)
    launched.send_signal(signum)
    out, _ = launched.communicate(timeout=30)
    assert sorted(out.splitlines()) == [f"[{rank}] saved after {signum.name}" for rank in (0, 1)]
    assert launched.returncode == 75
    assert are_gone(pids)


def test_workers_that_stop_one_after_another_are_waited_for() -> None:
    program = "import sys, time; time.sleep(2 * int(sys.argv[1])); print('saved'); sys.exit(75)"
    code, out, _ = run(program, 2)
    assert (code, out) == (75, ["[0] saved", "[1] saved"])


def test_a_worker_that_was_not_yet_listening_counts_as_stopped() -> None:
    launched = launch("import os, time; print('pid', os.getpid()); time.sleep(60)", 2)
    read_pids(launched, 2)
    launched.terminate()
    launched.communicate(timeout=30)
    assert launched.returncode == 75


def test_the_second_signal_kills() -> None:
    launched = launch(f"{STUBBORN} import os, time; print('pid', os.getpid()); time.sleep(60)", 2)
    pids = read_pids(launched, 2)
    launched.terminate()
    time.sleep(0.5)
    assert launched.poll() is None
    launched.terminate()
    launched.communicate(timeout=30)
    assert launched.returncode == 75
    assert are_gone(pids)


def test_workers_die_with_a_launcher_that_is_killed() -> None:
    launched = launch(STOPPABLE, 2)
    pids = read_pids(launched, 2)
    launched.kill()
    launched.communicate(timeout=30)
    assert are_gone(pids)


def test_children_of_workers_are_not_left_behind() -> None:
    program = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid)
"""
    launched = launch(program, 2)
    pids = read_pids(launched, 2)
    launched.communicate(timeout=30)
    assert launched.returncode == 0
    assert are_gone(pids)


def test_a_single_process_takes_the_launchers_place() -> None:
    program = "import os, sys; print(os.getpid(), os.environ['GIVEN'], sys.argv[1]); sys.exit(75)"
    launcher = (
        "import sys; from launch.local import become; from launch.plan import Process; "
        f"become(Process('0', (sys.executable, '-c', {program!r}, 'x'), {{'GIVEN': 'yes'}}))"
    )
    launched = launch("", 0, launcher)
    out, _ = launched.communicate(timeout=30)
    assert (launched.returncode, out) == (75, f"{launched.pid} yes x\n")


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


@pytest.mark.parametrize(
    ("visible", "expected"), [("", ()), ("2,0", ("2", "0")), ("0,-1,1", ("0",)), ("GPU-ab12", ("GPU-ab12",))]
)
def test_gpus_are_those_that_cuda_shall_see(visible: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_machine().gpus == expected


needs_horovod = pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed")


@needs_horovod
@pytest.mark.processes
def test_horovodrun_keeps_the_exit_code_of_the_rank_that_failed() -> None:
    program = "import os, sys, time; print('hello'); os.environ['HOROVOD_RANK'] == '1' and sys.exit(3); time.sleep(60)"
    code, out, err = run(program, 2, HOROVOD_LAUNCHER)
    assert code == 3
    assert "[1] hello" in out
    assert err.splitlines()[-1] == "Worker 1 failed with exit code 3."
    assert "Traceback" not in err


@needs_horovod
@pytest.mark.processes
def test_ranks_of_horovodrun_may_save_when_asked_to_stop() -> None:
    """Six seconds: more than the five that horovodrun itself would leave them."""
    launched = launch(STOPPABLE.replace("0.3", "6"), 2, HOROVOD_LAUNCHER)
    pids = read_pids(launched, 2)
    launched.terminate()
    out, _ = launched.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["[0] saved after SIGTERM", "[1] saved after SIGTERM"]
    assert launched.returncode == 75
    assert are_gone(pids)
