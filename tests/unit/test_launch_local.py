"""Real processes under the launcher: their output, signals to them, failures, and that none is left behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from launch.machine import find_machine, free_ports
from tests.unit.launch_programs import LAUNCHER, ROOT, STOPPABLE, STUBBORN, are_gone, launch, read_pids, run


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


def test_a_daemon_that_left_its_worker_is_not_left_behind() -> None:
    """In a session of its own, and no longer below any worker: only the mark of the launch finds it."""
    program = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid())
        os.close(1), os.close(2)
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(0.5)
"""
    launched = launch(program, 1)
    pids = read_pids(launched, 1)
    launched.communicate(timeout=30)
    assert launched.returncode == 0
    assert are_gone(pids, seconds=2.0)


def test_a_stopped_worker_ends_with_the_others() -> None:
    program = """
import os, signal, sys, time
print("pid", os.getpid())
if sys.argv[1] == "0":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(1.0)
sys.exit(70)
"""
    launched = launch(program, 2)
    pids = read_pids(launched, 2)
    _, err = launched.communicate(timeout=30)
    assert launched.returncode == 70
    assert "did not end within 1 s: killing" in err
    assert are_gone(pids)


def test_sigusr1_reaches_those_that_listen_and_no_others() -> None:
    program = """
import os, signal, sys, time
saves = []
if sys.argv[1] == "1":
    signal.signal(signal.SIGUSR1, lambda number, frame: saves.append("saved"))
print("pid", os.getpid())
time.sleep(1.5)
print(*saves)
"""
    launched = launch(program, 2)
    pids = read_pids(launched, 2)
    launched.send_signal(signal.SIGUSR1)
    out, err = launched.communicate(timeout=30)
    assert sorted(out.splitlines()) == ["[0] ", "[1] saved"]
    assert err == "SIGUSR1: asked the workers to save and go on.\n"
    assert launched.returncode == 0
    assert are_gone(pids)


def test_sigusr1_that_nobody_listens_for_is_told() -> None:
    launched = launch("import os, time; print('pid', os.getpid()); time.sleep(1.5)", 1)
    read_pids(launched, 1)
    launched.send_signal(signal.SIGUSR1)
    _, err = launched.communicate(timeout=30)
    assert (launched.returncode, err) == (0, "SIGUSR1: no worker listens for it yet.\n")


CHANGING_LAUNCHER = LAUNCHER.replace(
    "    sys.exit(local.run(workers, requests, grace_seconds=1.0))",
    """    began = time.monotonic()
    change = lambda: "workers 2 -> 1" if time.monotonic() - began > 1.0 else None
    code = local.run(workers, requests, change=change)
    print("asked to stop:", requests.stop)
    sys.exit(code)""",
).replace("import logging, sys", "import logging, sys, time")


def test_a_change_asks_the_workers_to_save_and_stop() -> None:
    launched = launch(STOPPABLE, 2, CHANGING_LAUNCHER)
    out, err = launched.communicate(timeout=30)
    assert launched.returncode == 75
    assert [line for line in out.splitlines() if "pid" not in line][-1] == "asked to stop: False"
    assert out.count("saved after SIGTERM") == 2
    assert err == "workers 2 -> 1; asking the workers to save and stop.\n"


def test_the_first_signal_during_a_change_does_not_kill() -> None:
    launched = launch(STOPPABLE.replace("0.3", "2"), 1, CHANGING_LAUNCHER)
    read_pids(launched, 1)
    assert launched.stderr is not None
    assert "asking the workers" in launched.stderr.readline()
    launched.terminate()
    out, _ = launched.communicate(timeout=30)
    assert launched.returncode == 75
    assert out.splitlines() == ["[0] saved after SIGTERM", "asked to stop: True"]


def test_a_process_in_the_terminal_keeps_it() -> None:
    launcher = LAUNCHER.replace("grace_seconds=1.0", "in_terminal=True")
    program = "import sys; print(sys.stdin.isatty(), sys.stdout.isatty(), sys.stderr.isatty()); sys.exit(75)"
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-u", "-c", launcher, program, "1"]
    launched = subprocess.Popen(argv, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    with os.fdopen(ours) as terminal:
        assert terminal.readline() == "True True True\n"
        assert launched.wait(timeout=30) == 75


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
