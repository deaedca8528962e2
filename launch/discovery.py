"""Asks a script, again and again, which machines there are."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from launch.membership import parse_discovery
from trainer.errors import UserError

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0
_TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Answer:
    """What the script says: slots by host. `number` counts the answers; `since` is when it first said so (monotonic)."""

    slots: Mapping[str, int]
    number: int
    since: float


def ask(script: str, ended: threading.Event | None = None) -> dict[str, int]:
    """Runs the script once, in a shell as `horovodrun` does; not to its end when `ended` is set meanwhile.

    Raises UserError where it fails or says nothing sensible.
    """
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"--discovery: {script!r} cannot be started: {error}") from error
    began = time.monotonic()
    while True:
        try:
            told, complaints = process.communicate(timeout=_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() - began < _TIMEOUT_SECONDS and not (ended and ended.is_set()):
                continue
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise UserError(f"--discovery: {script!r} did not end within {_TIMEOUT_SECONDS:g} s") from None
    if process.returncode:
        last = complaints.strip().splitlines()[-1:]
        because = f": {last[0]}" if last else ""
        raise UserError(f"--discovery: {script!r} ended with exit code {process.returncode}{because}")
    return parse_discovery(told)


class Discovery:
    """While entered, asks the script every second in a thread. A script that fails is warned about once, and the last
    answer holds; at the first time, on entering, it is an error."""

    def __init__(self, script: str) -> None:
        self._script = script
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="discovery", daemon=True)

    def __enter__(self) -> Discovery:
        self.answer = Answer(ask(self._script), 1, time.monotonic())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        warned = False
        while not self._ended.wait(_EVERY_SECONDS):
            try:
                slots = ask(self._script, self._ended)
            except UserError as error:
                if not warned and not self._ended.is_set():
                    logger.warning("%s; the last answer holds.", error)
                warned = True
                continue
            if warned:
                logger.info("--discovery: %r answers again.", self._script)
            warned = False
            before = self.answer
            since = before.since if slots == before.slots else time.monotonic()
            self.answer = Answer(slots, before.number + 1, since)
