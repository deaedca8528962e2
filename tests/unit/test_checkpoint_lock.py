"""Two runs never save into one folder: the lock between real processes, on this disk and behind a URL. No TensorFlow."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from upath import UPath

from trainer import checkpoint_lock
from trainer.checkpoint_lock import LOCAL_NAME, REMOTE_NAME, DirectoryLock
from trainer.errors import CheckpointError
from trainer.files import json_bytes
from trainer.location import open_location

# Holds the lock until its input ends.
HOLDER = """
import sys
from pathlib import Path
from upath import UPath
from trainer.checkpoint_lock import DirectoryLock
text = sys.argv[1]
with DirectoryLock(UPath(text) if "://" in text else Path(text), "run first in runs/first"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock, until the block ends or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        if process.poll() is None:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait() == 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the intervals of remote locks, of this process, to a tenth of a second and its like."""
    monkeypatch.setattr(checkpoint_lock, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(checkpoint_lock, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(checkpoint_lock, "POLL_SECONDS", 0.05)


def remote() -> Path:
    return open_location(f"memory://{uuid.uuid4()}/checkpoints")


def left_behind(directory: Path, **changes: object) -> None:
    """The lock of a run that is not there to refresh it."""
    holder = {"owner": "run old in runs/old", "host": "elsewhere", "process": 7, "process_started": 1, "since": "yesterday"}
    (directory / REMOTE_NAME).write_bytes(json_bytes({**holder, "process_namespace": "b", "token": "t", **changes}))


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with another_run(tmp_path) as first, pytest.raises(CheckpointError) as refused:
        DirectoryLock(tmp_path, "run second").acquire()
    message = str(refused.value)
    holder = f"run first in runs/first (host {socket.gethostname()}, process {first.pid}, since 20"
    assert message.startswith(f"{tmp_path} is in use by {holder}")
    assert "take another run.name or checkpoint.directory" in message and "\n" not in message


def test_a_lock_that_was_released_is_free(tmp_path: Path) -> None:
    with another_run(tmp_path):
        pass
    with DirectoryLock(tmp_path, "run second"):
        assert json.loads((tmp_path / LOCAL_NAME).read_bytes())["owner"] == "run second"


def test_after_kill_9_the_lock_is_free_at_once(tmp_path: Path) -> None:
    with another_run(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        began = time.monotonic()
        with DirectoryLock(tmp_path, "run second"):
            assert time.monotonic() - began < 0.5


def test_within_one_process_the_lock_is_held_but_once(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path, "run first"), pytest.raises(CheckpointError, match="run first"):
        DirectoryLock(tmp_path, "run second").acquire()


def test_a_child_does_not_keep_the_lock_that_its_parent_released(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path, "run first")
    lock.acquire()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
    ) as child:
        lock.release()
        with DirectoryLock(tmp_path, "run second"):
            pass
        child.kill()


def test_the_folder_is_made_and_a_file_in_its_place_named(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "run" / "checkpoints", "run first"):
        assert (tmp_path / "run" / "checkpoints").is_dir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/checkpoints: cannot be locked for saving"):
        DirectoryLock(tmp_path / "file" / "checkpoints", "run first").acquire()


def test_release_without_acquire_does_nothing(tmp_path: Path, quick: None) -> None:
    DirectoryLock(tmp_path, "run first").release()
    DirectoryLock(remote(), "run first").release()


def test_a_remote_lock_is_refreshed_and_refuses_others(quick: None) -> None:
    directory = remote()
    with DirectoryLock(directory, "run first") as lock:
        before = (directory / REMOTE_NAME).read_bytes()
        with pytest.raises(CheckpointError, match="run first"):
            DirectoryLock(directory, "run second").acquire()
        deadline = time.monotonic() + 10
        while (directory / REMOTE_NAME).read_bytes() == before:
            assert time.monotonic() < deadline, "the lock is not refreshed"
            time.sleep(0.05)
        lock.refuse_lost()
    assert not (directory / REMOTE_NAME).exists()
    with DirectoryLock(directory, "run second"):
        pass


def test_a_remote_lock_that_nobody_refreshes_is_taken_over(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    directory = remote()
    left_behind(directory)
    began = time.monotonic()
    with caplog.at_level(logging.INFO), DirectoryLock(directory, "run second"):
        assert time.monotonic() - began >= 1.0
        assert json.loads((directory / REMOTE_NAME).read_bytes())["owner"] == "run second"
    assert "the lock is held by run old in runs/old (host elsewhere, process 7, since yesterday); waiting" in caplog.text
    assert "took the lock over from run old in runs/old" in caplog.text


def test_a_remote_lock_that_is_released_meanwhile_is_free(quick: None) -> None:
    directory = remote()
    left_behind(directory)
    threading.Timer(0.3, (directory / REMOTE_NAME).unlink).start()
    began = time.monotonic()
    with DirectoryLock(directory, "run second"):
        assert time.monotonic() - began < 0.9


def test_a_remote_lock_that_was_taken_over_is_lost(quick: None) -> None:
    directory = remote()
    with DirectoryLock(directory, "run first") as lock:
        left_behind(directory, owner="run thief")
        deadline = time.monotonic() + 10
        with pytest.raises(CheckpointError, match="run thief"):
            while time.monotonic() < deadline:
                lock.refuse_lost()
                time.sleep(0.05)
    assert (directory / REMOTE_NAME).exists(), "the lock of another is not ours to delete"


def test_of_two_that_come_at_once_one_gets_the_remote_lock(quick: None) -> None:
    directory = remote()
    locks = [DirectoryLock(directory, f"run {number}") for number in range(8)]
    outcomes: list[str] = []

    def acquire(lock: DirectoryLock) -> None:
        try:
            lock.acquire()
            outcomes.append("locked")
        except CheckpointError:
            outcomes.append("refused")

    threads = [threading.Thread(target=acquire, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["locked"] + ["refused"] * 7
    for lock in locks:
        lock.release()


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs Linux: asks the kernel which processes live")
def test_the_remote_lock_of_a_process_killed_here_is_free_at_once(tmp_path: Path, quick: None) -> None:
    """A real process and a store that both see: a folder behind fsspec."""
    directory = UPath(f"file://{tmp_path}/checkpoints")
    with another_run(directory) as first:
        first.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and yet in the list of processes
        began = time.monotonic()
        with DirectoryLock(directory, "run second"):
            assert time.monotonic() - began < 0.9
        first.wait()


@pytest.mark.slow
def test_the_remote_lock_of_a_live_process_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the real intervals: the second sees the first refresh it after 10 s."""
    directory = UPath(f"file://{tmp_path}/checkpoints")
    with another_run(directory), pytest.raises(CheckpointError, match="run first in runs/first"):
        DirectoryLock(directory, "run second").acquire()
