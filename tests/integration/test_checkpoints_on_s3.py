"""Checkpoints in a bucket: a real S3 server in a process of its own on this machine. No TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_examples import checkpoint, spoil, write
from trainer.checkpoint import (
    list_checkpoints,
    newest_good,
    prune_checkpoints,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from trainer.checkpoint_lock import DirectoryLock
from trainer.config import CheckpointConfig
from trainer.encryption.files import Encryption
from trainer.encryption.folders import rotate
from trainer.encryption.keys import MasterKey
from trainer.errors import CheckpointError, SecurityError
from trainer.location import listing, open_location
from trainer.saver import CheckpointSaver

MISSING = [name for name in ("s3fs", "moto", "flask", "flask_cors") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs an S3 server: {', '.join(MISSING)} not installed")

# Saves one checkpoint after another until it is killed.
WRITER = """
import sys
from tests.checkpoint_examples import checkpoint
from trainer.checkpoint import list_checkpoints, write_checkpoint
from trainer.location import open_location
directory = open_location(sys.argv[1])
infos = list_checkpoints(directory)
step = infos[-1].step if infos else 0
while True:
    step += 1
    print("writing", flush=True)
    write_checkpoint(directory, checkpoint(step, num_weights=400_000), {})
"""

HOLDER = """
import sys
from trainer.checkpoint_lock import DirectoryLock
from trainer.location import open_location
with DirectoryLock(open_location(sys.argv[1]), "run first in runs/first"):
    print("locked", flush=True)
    sys.stdin.read()
"""


class Server:
    """An S3 endpoint on the loopback address, with one bucket."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """An empty one: what the last one held is gone."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def _shared() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def server(_shared: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import s3fs

    for name, value in (
        ("AWS_ENDPOINT_URL", _shared.url),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    if _shared.process.poll() is not None:
        _shared.start()
    if not s3fs.S3FileSystem().exists("bucket"):
        s3fs.S3FileSystem().mkdir("bucket")
    yield _shared
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def directory(server: Server) -> Path:
    return open_location(f"s3://bucket/{uuid.uuid4()}/checkpoints")


def test_what_is_written_is_read_back_to_the_last_bit(directory: Path) -> None:
    written = checkpoint(12, loss=3.25)
    path = write_checkpoint(directory, written, {"world_size": 2})
    assert str(path) == f"{directory}/step-00000012"
    assert verify_checkpoint(path) is None
    read = read_checkpoint(path)
    assert (read.progress, read.identity) == (written.progress, written.identity)
    for ours, theirs in ((read.weights, written.weights), (read.optimizer, written.optimizer)):
        assert {name: array.tobytes() for name, array in ours.items()} == {name: a.tobytes() for name, a in theirs.items()}


@pytest.mark.slow
def test_a_file_of_several_parts_is_read_back(directory: Path) -> None:
    large = {"weight": np.random.default_rng(1).normal(size=30_000_000).astype(np.float32)}  # 120 MB: three parts
    path = write_checkpoint(directory, replace(checkpoint(1), weights=large), {})
    assert verify_checkpoint(path) is None
    assert read_checkpoint(path).weights["weight"].tobytes() == large["weight"].tobytes()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "half a manifest", "empty manifest", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_replaced(directory: Path, damage: str) -> None:
    _, good, damaged = write(directory, 1, 2, 3)
    spoil(damaged, damage)
    assert verify_checkpoint(damaged) is not None
    assert newest_good(directory) == good
    write(directory, 3)
    assert newest_good(directory) == damaged


def test_another_process_sees_what_was_written_meanwhile(directory: Path) -> None:
    """fsspec remembers listings; a reader that has looked before must see what came since."""
    assert list_checkpoints(directory) == []
    program = (
        "import sys; from tests.checkpoint_examples import write; from trainer.location import open_location;"
        "write(open_location(sys.argv[1]), 1, 2)"
    )
    subprocess.run([sys.executable, "-c", program, str(directory)], check=True)
    assert [info.step for info in list_checkpoints(directory)] == [1, 2]
    assert newest_good(directory) == directory / "step-00000002"


def test_pruning_and_saving_in_the_background(directory: Path) -> None:
    saver = CheckpointSaver(directory, CheckpointConfig(keep_last=2, keep_best=1, keep_every=4))
    for step, loss in enumerate((4.0, 1.0, 3.0, 2.0, 5.0, 6.0), start=1):
        saver.save(checkpoint(step, loss), {})
    saver.close()
    assert [info.step for info in list_checkpoints(directory)] == [2, 4, 5, 6]
    assert set(listing(directory)) == {f"step-{step:08d}" for step in (2, 4, 5, 6)}


@pytest.mark.slow
def test_killed_while_it_writes_what_was_finished_stays(directory: Path, server: Server) -> None:
    newest = 0
    for number in range(4):
        command = [sys.executable, "-c", WRITER, str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(2):  # the first is written when it begins with the second
                assert process.stdout.readline() == "writing\n"
            time.sleep(0.017 * number)
            process.send_signal(signal.SIGKILL)
        finished = [info.step for info in list_checkpoints(directory) if info.problem is None]
        assert finished[-1] > newest, "a checkpoint that was there before the kill is gone"
        newest = finished[-1]
        assert newest_good(directory) == directory / f"step-{newest:08d}"
    prune_checkpoints(directory, CheckpointConfig(keep_last=1, keep_best=0))
    assert set(listing(directory)) == {f"step-{newest:08d}"}


@pytest.mark.slow
def test_an_endpoint_that_dies_during_a_save_is_a_failed_save(
    directory: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    saver = CheckpointSaver(directory, CheckpointConfig(max_failures=1))
    saver.save(checkpoint(1), {})
    saver.wait()
    # Of several parts, so that the server dies in the middle of a file.
    large = {"weight": np.ones(40_000_000, np.float32)}
    saver.save(replace(checkpoint(2), weights=large), {})
    time.sleep(0.3)
    assert saver.is_busy
    server.kill()
    began = time.monotonic()
    saver.wait()
    print(f"\nthe failed save ended {time.monotonic() - began:.1f} s after the endpoint was gone")
    assert saver.failures == 1
    warning = next(record.getMessage() for record in caplog.records if "could not save" in record.getMessage())
    assert warning.startswith("could not save step 2: EndpointConnectionError: Could not connect to the endpoint URL")
    assert warning.endswith("the checkpoints before it cannot be read now, either; training goes on")
    with pytest.raises(CheckpointError, match="the last 1 saves failed"):
        saver.refuse_failing()
    with pytest.raises(CheckpointError, match=f"{directory}.*cannot be read.*EndpointConnectionError"):
        newest_good(directory)
    saver.close()


@pytest.mark.slow
def test_an_endpoint_that_comes_back_is_saved_to_again(directory: Path, server: Server) -> None:
    saver = CheckpointSaver(directory, CheckpointConfig())
    server.kill()
    saver.save(checkpoint(1), {})
    saver.wait()
    assert saver.failures == 1
    server.start()
    import s3fs

    s3fs.S3FileSystem().mkdir("bucket")
    saver.save(checkpoint(2), {})
    saver.close()
    assert saver.failures == 0
    assert newest_good(directory) == directory / "step-00000002"


def test_a_bucket_that_is_not_there_is_not_made(server: Server) -> None:
    directory = open_location("s3://mistyped/run/checkpoints")
    with pytest.raises(OSError):
        write_checkpoint(directory, checkpoint(1), {})
    with pytest.raises(CheckpointError, match="s3://mistyped/run/checkpoints: cannot be locked"):
        DirectoryLock(directory, "run first").acquire()
    import s3fs

    assert not s3fs.S3FileSystem().exists("mistyped")


@pytest.mark.slow
def test_the_second_run_is_refused_the_bucket(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "locked\n"
        held = json.loads((directory / "lock.json").read_bytes())
        assert (held["owner"], held["process"]) == ("run first in runs/first", first.pid)
        with caplog.at_level(logging.INFO), pytest.raises(CheckpointError, match=f"run first.*process {first.pid}"):
            DirectoryLock(directory, "run second").acquire()
        assert "waiting up to 30 s to see whether that still lives" in caplog.text
        first.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        began = time.monotonic()
        with DirectoryLock(directory, "run second"):
            assert time.monotonic() - began < 10
    assert not (directory / "lock.json").exists()


def test_encrypted_checkpoints_in_a_bucket_are_read_and_get_another_key(directory: Path) -> None:
    old, new = (Encryption(MasterKey(bytes([number]) * 32), is_on=True) for number in (1, 2))
    written = checkpoint(3, num_weights=400_000)
    path = write_checkpoint(directory, written, {}, old)
    assert verify_checkpoint(path) is None
    with pytest.raises(SecurityError, match="is encrypted; give its key"):
        read_checkpoint(path)
    assert old.key and new.key
    assert rotate(directory, old.key, new.key) == (3, 0)
    assert verify_checkpoint(path) is None, "hashes are of what is encrypted, without the key"
    read = read_checkpoint(path, new)
    assert read.progress == written.progress
    for name, weight in written.weights.items():
        np.testing.assert_array_equal(read.weights[name], weight)
    with pytest.raises(SecurityError, match="and the one that was given"):
        read_checkpoint(path, old)
