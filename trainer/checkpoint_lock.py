"""A lock on a folder of checkpoints: two runs that save into one folder would delete each other's.

In a local folder the kernel holds it (flock), and gives it up when the process ends, however it ends. Behind a URL there is
no such thing: there an object says who holds the lock, and its holder writes it anew every few seconds; one that stays as
it is belongs to a process that is gone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.errors import CheckpointError
from trainer.files import json_bytes
from trainer.location import is_local, make_location, os_errors, written_file

logger = logging.getLogger(__name__)

LOCAL_NAME, REMOTE_NAME = ".lock", "lock.json"
# A holder that missed two refreshments may be slow; one that missed three is gone.
REFRESH_SECONDS, STALE_SECONDS, POLL_SECONDS = 10.0, 30.0, 1.0


class DirectoryLock:
    """Held between `acquire` and `release`, or within a `with` block. `owner` is the name under which others are refused."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._lock = _LocalLock(directory, owner) if is_local(directory) else _RemoteLock(directory, owner)

    def acquire(self) -> None:
        """Raises CheckpointError where another run holds the lock, with its name, host, process and since when; or where the
        lock cannot be written."""
        self._lock.acquire()

    def release(self) -> None:
        """Gives the lock up. Where it is not held, nothing happens."""
        self._lock.release()

    def refuse_lost(self) -> None:
        """Raises CheckpointError where another run has taken the lock over: this one could not refresh it for so long that it
        was thought to be gone. A local lock cannot be lost."""
        self._lock.refuse_lost()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()


class _LocalLock:
    def __init__(self, directory: Path, owner: str) -> None:
        self._directory, self._owner = directory, owner
        self._descriptor: int | None = None

    def acquire(self) -> None:
        path = self._directory / LOCAL_NAME
        try:
            make_location(self._directory)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unusable(self._directory, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json_bytes(_holder(self._owner)))
        except BlockingIOError:
            holder = _parsed(os.pread(descriptor, 2**16, 0))
            os.close(descriptor)
            raise _refusal(self._directory, holder) from None
        except OSError as error:
            os.close(descriptor)
            raise _unusable(self._directory, error) from error
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            # The file stays: were it deleted, one could lock it while another makes it anew and locks that.
            os.ftruncate(self._descriptor, 0)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing alone leaves it to a child that was forked a moment ago
            os.close(self._descriptor)
            self._descriptor = None

    def refuse_lost(self) -> None:
        pass


class _RemoteLock:
    def __init__(self, directory: Path, owner: str) -> None:
        self._directory, self._owner = directory, owner
        self._path = directory / REMOTE_NAME
        self._content: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._released = threading.Event()
        self._taken_by: Mapping[str, Any] | None = None
        self._fault: Exception | None = None

    def acquire(self) -> None:
        self._content = {**_holder(self._owner), "token": uuid.uuid4().hex, "refreshments": 0}
        try:
            make_location(self._directory)
            holder = self._read()
            if holder is not None:
                self._wait_until_stale(holder)
            self._take(must_be_new=holder is None)
        except OSError as error:
            raise _unusable(self._directory, error) from error
        self._released.clear()
        self._taken_by = self._fault = None
        self._thread = threading.Thread(target=self._refresh, name="checkpoint-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        if self._thread is None:
            return
        self._released.set()
        self._thread.join(STALE_SECONDS)
        if self._thread.is_alive():
            logger.warning(
                "%s: left as it is, since the server does not answer; it is void in %.0f s", self._path, STALE_SECONDS
            )
            return
        self._thread = None
        try:
            if self._is_ours(self._read()):
                with os_errors():
                    self._path.unlink()
        except OSError as error:
            logger.warning("%s: could not be deleted (%s); it is void in %.0f s", self._path, error, STALE_SECONDS)
        if self._fault is not None:
            raise self._fault

    def refuse_lost(self) -> None:
        if self._fault is not None:
            raise self._fault
        if self._taken_by is not None:
            raise _refusal(self._directory, self._taken_by)

    def _wait_until_stale(self, holder: Mapping[str, Any]) -> None:
        """Returns when the lock is free: its holder is known to be gone, has released it, or did not refresh it."""
        if _is_gone(holder):
            logger.warning("%s: took the lock over from %s, which is gone", self._directory, _described(holder))
            return
        logger.info(
            "%s: the lock is held by %s; waiting up to %.0f s to see whether that still lives",
            self._directory,
            _described(holder),
            STALE_SECONDS,
        )
        began = time.monotonic()
        while time.monotonic() - began < STALE_SECONDS:
            time.sleep(POLL_SECONDS)
            now = self._read()
            if now is None:
                return
            if now != holder:
                raise _refusal(self._directory, now)
        logger.warning(
            "%s: took the lock over from %s, which has not refreshed it for %.0f s",
            self._directory,
            _described(holder),
            STALE_SECONDS,
        )

    def _take(self, *, must_be_new: bool) -> None:
        """Writes the lock, and looks after a while whether another did the same at the same time: the last one has it."""
        try:
            self._write(create=must_be_new)
        except FileExistsError:
            raise _refusal(self._directory, self._read() or {}) from None
        time.sleep(POLL_SECONDS)
        now = self._read()
        if not self._is_ours(now):
            raise _refusal(self._directory, now or {})

    def _refresh(self) -> None:
        while not self._released.wait(REFRESH_SECONDS):
            try:
                now = self._read()
                if now is not None and not self._is_ours(now):
                    self._taken_by = now
                    logger.error("%s", _refusal(self._directory, now))
                    return
                self._content["refreshments"] += 1
                self._write()
            except OSError as error:
                logger.warning("%s: the lock could not be refreshed: %s", self._path, error)
            except Exception as fault:
                self._fault = fault
                return

    def _read(self) -> Mapping[str, Any] | None:
        try:
            with os_errors():
                remote: Any = self._path
                remote.fs.invalidate_cache(remote.parent.path)
                return _parsed(remote.read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, *, create: bool = False) -> None:
        """Raises FileExistsError where `create` is asked for and it is there already, if the file system can tell."""
        content = json_bytes(self._content)
        if not create:
            with written_file(self._path) as file:
                file.write(content)
            return
        remote: Any = self._path
        with os_errors():
            remote.fs.pipe_file(remote.path, content, mode="create")

    def _is_ours(self, holder: Mapping[str, Any] | None) -> bool:
        return holder is not None and holder.get("token") == self._content["token"]


def _holder(owner: str) -> dict[str, Any]:
    return {
        "owner": owner,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "process_namespace": _process_namespace(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Whether it was a process of this system that is no more. Numbers of processes mean nothing in another container."""
    here = _process_namespace()
    if here is None or (holder.get("host"), holder.get("process_namespace")) != (socket.gethostname(), here):
        return False
    return _process_started(holder["process"]) != holder["process_started"]


def _process_namespace() -> str | None:
    """One start of the system's kernel, and the container whose process numbers count; None where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except FileNotFoundError:  # no Linux
        return None


def _process_started(process: int) -> int | None:
    """When a process began, in clock ticks since the system did, by which it is known from a later one of the same number;
    None where there is none, or only what its parent has yet to collect."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = status.rpartition(")")[2].split()  # the program's name, in brackets, may contain blanks
    return None if state in "ZX" else int(rest[18])


def _parsed(content: bytes) -> dict[str, Any]:
    """Who holds the lock, as far as it can be read: it may be in the middle of being written."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _described(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another run"
    return f"{holder['owner']} (host {holder['host']}, process {holder['process']}, since {holder['since']})"


def _refusal(directory: Path, holder: Mapping[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"{directory} is in use by {_described(holder)}; wait until that has ended, or take another run.name or "
        "checkpoint.directory"
    )


def _unusable(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{directory}: cannot be locked for saving: {error}; see whether it is there and may be written")
