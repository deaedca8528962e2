"""`horovodrun` under the launcher, with ranks that need no Horovod: exit codes, signals, stopped and killed ranks.

Other machines are addresses of this one that `horovodrun` does not know to be its own, reached by a script named ssh.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest

from launch.ranks import send_over_ssh
from tests.unit.launch_programs import HOROVOD_LAUNCHER, ROOT, SSH, STOPPABLE, are_gone, is_alive, launch, read_pids, run

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"),
]

HOSTS = ("127.0.0.2", "127.0.0.3")
RANK = "import os, signal, sys, time; rank = int(os.environ['HOROVOD_RANK']); print('pid', os.getpid());"


@pytest.fixture
def ssh(tmp_path: Path) -> dict[str, str]:
    """The environment in which `ssh` reaches this machine under every address."""
    path = tmp_path / "bin" / "ssh"
    path.parent.mkdir()
    path.write_text(SSH)
    path.chmod(0o755)
    down = tmp_path / "down"
    down.mkdir()
    return {"PATH": os.pathsep.join([str(path.parent), os.environ["PATH"]]), "DOWN": str(down)}


def test_horovodrun_keeps_the_exit_code_of_the_rank_that_failed() -> None:
    program = "import os, sys, time; print('hello'); os.environ['HOROVOD_RANK'] == '1' and sys.exit(3); time.sleep(60)"
    code, out, err = run(program, 2, HOROVOD_LAUNCHER)
    assert code == 3, err
    assert "[1] hello" in out
    assert "Worker 1 failed with exit code 3." in err.splitlines()
    assert "Traceback" not in err


def test_ranks_of_horovodrun_may_save_when_asked_to_stop() -> None:
    """Six seconds: more than the five that horovodrun itself would leave them."""
    launched = launch(STOPPABLE.replace("0.3", "6"), 2, HOROVOD_LAUNCHER)
    pids = read_pids(launched, 2)
    launched.terminate()
    out, _ = launched.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["[0] saved after SIGTERM", "[1] saved after SIGTERM"]
    assert launched.returncode == 75
    assert are_gone(pids)


def test_a_rank_that_was_killed_is_named_with_its_signal() -> None:
    code, _, err = run(f"{RANK} rank == 1 and os.kill(os.getpid(), 9); time.sleep(60)", 2, HOROVOD_LAUNCHER)
    assert code == 137, err
    assert err.splitlines()[-2:] == ["Worker 1 failed with exit code 137.", "failed hosts: localhost"]


def test_one_rank_alone() -> None:
    code, out, _ = run(f"{RANK} print('size', os.environ['HOROVOD_SIZE']); sys.exit(75)", 1, HOROVOD_LAUNCHER, "localhost")
    assert code == 75
    assert "[0] size 1" in out


def test_a_stopped_rank_is_killed_when_another_has_left() -> None:
    """As with the watchdog: it finds that rank 0 does not go on, and leaves with 70."""
    program = f"{RANK} rank == 0 and os.kill(os.getpid(), signal.SIGSTOP); time.sleep(1); sys.exit(70)"
    launched = launch(program, 2, HOROVOD_LAUNCHER)
    pids = read_pids(launched, 2)
    began = time.monotonic()
    _, err = launched.communicate(timeout=60)
    print(f"\nall gone {time.monotonic() - began:.1f} s after a rank was stopped and 1 s before another left")
    assert launched.returncode == 70
    assert "Worker 1 failed with exit code 70." in err
    assert are_gone(pids, seconds=0.5)
    assert time.monotonic() - began < 30


def test_what_a_killed_rank_left_behind_does_not_hold_up_the_end() -> None:
    """Its child holds the pipe that `horovodrun` reads to the end before it looks at the rank."""
    child = "__import__('subprocess').Popen(['sleep', '60'])"
    program = f"{RANK} rank == 1 and ({child}, time.sleep(2.5), os.kill(os.getpid(), 9)); time.sleep(4); sys.exit(70)"
    began = time.monotonic()
    code, _, _ = run(program, 2, HOROVOD_LAUNCHER)
    assert code in (70, 137)
    assert time.monotonic() - began < 45


def test_sigusr1_reaches_ranks_that_listen_alone() -> None:
    program = f"{RANK} rank == 1 and signal.signal(signal.SIGUSR1, lambda *_: print('saved')); time.sleep(4)"
    launched = launch(program, 2, HOROVOD_LAUNCHER)
    read_pids(launched, 2)
    time.sleep(0.5)
    launched.send_signal(signal.SIGUSR1)
    out, _ = launched.communicate(timeout=60)
    assert (launched.returncode, out) == (0, "[1] saved\n")


def test_ranks_die_with_a_launcher_that_is_killed_the_stopped_one_too() -> None:
    launched = launch(f"{RANK} rank == 0 and os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)", 2, HOROVOD_LAUNCHER)
    pids = read_pids(launched, 2)
    launched.kill()
    launched.communicate(timeout=60)
    assert are_gone(pids, seconds=20)


def test_ranks_on_other_machines_may_save_when_asked_to_stop(ssh: dict[str, str]) -> None:
    launched = launch(STOPPABLE.replace("0.3", "6"), 2, HOROVOD_LAUNCHER, *HOSTS, **ssh)
    pids = read_pids(launched, 2)
    launched.terminate()
    out, _ = launched.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["[0] saved after SIGTERM", "[1] saved after SIGTERM"]
    assert launched.returncode == 75
    assert are_gone(pids)


def test_a_machine_that_cannot_be_reached_is_named(ssh: dict[str, str]) -> None:
    Path(ssh["DOWN"], "127.0.0.3").touch()
    code, _, err = run("", 2, HOROVOD_LAUNCHER, *HOSTS, **ssh)
    assert code == 70, err
    assert err.splitlines()[-2:] == ["No connection over ssh to 127.0.0.3.", "failed hosts: 127.0.0.3"]


def test_a_connection_that_breaks_off_is_a_lost_rank(ssh: dict[str, str]) -> None:
    code, _, err = run(f"{RANK} rank == 1 and sys.exit(255); time.sleep(60)", 2, HOROVOD_LAUNCHER, *HOSTS, **ssh)
    assert code == 70, err
    expected = ["Worker 1 is lost: the connection to 127.0.0.3 broke off.", "failed hosts: 127.0.0.3"]
    assert err.splitlines()[-2:] == expected


def test_a_signal_over_ssh_goes_to_the_first_machine_that_has_ranks(
    ssh: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The ranks here have the mark that the launcher gave them, whoever asks."""
    for name, value in ssh.items():
        monkeypatch.setenv(name, value)
    Path(ssh["DOWN"], "127.0.0.2").touch()
    program = STOPPABLE.replace('print("pid"', 'print(os.environ["DRUMLINE_LAUNCH"], "pid"')
    launched = launch(program, 1, HOROVOD_LAUNCHER)
    assert launched.stdout is not None
    _, mark, _, pid = launched.stdout.readline().split()
    monkeypatch.chdir(ROOT)
    assert not send_over_ssh(HOSTS, None, "another mark", signal.SIGTERM)
    assert is_alive(int(pid))
    assert send_over_ssh(HOSTS, 22, mark, signal.SIGTERM)
    launched.communicate(timeout=60)
    assert launched.returncode == 75
    assert "The ranks on 127.0.0.2 cannot be reached: ssh: 127.0.0.2 is down" in caplog.text
