"""Requests to a run that goes on: signals become flags that the loop asks for, and agrees on with the other ranks."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

from trainer.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_AT_ONCE = b"drumline: interrupted twice: leaving at once; what was not saved is lost\n"


class StopRequest:
    """While entered, SIGTERM and SIGINT set `stop` and SIGUSR1 asks for a save, instead of ending the process.

    A second SIGINT leaves at once with 75, a second SIGTERM changes nothing. Python's own handlers wait until the main
    thread comes back from TensorFlow, so the signals are read by a thread, from the descriptor to which the interpreter
    writes each signal's number the moment it arrives. To be entered in the main thread.
    """

    def __init__(self) -> None:
        self.stop = False
        self._save = threading.Event()
        self._num_interrupts = 0
        self._handlers: dict[int, Any] = {}
        self._descriptor_before = -1

    def take_save(self) -> bool:
        """Whether a save was asked for since this was last called."""
        asked = self._save.is_set()
        if asked:
            self._save.clear()
        return asked

    def __enter__(self) -> StopRequest:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._read, name="signals", daemon=True)
        self._thread.start()
        # The descriptor first: once there are handlers no signal may be missed. When so many come at once that it is full,
        # one more makes no difference.
        self._descriptor_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            # None stands for a handler that was not set from Python, and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._descriptor_before)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Python's handler, without which the number would not be written; it may run much later than the thread."""
        if number != signal.SIGUSR1:
            self.stop = True

    def _read(self) -> None:
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number == signal.SIGUSR1:
                    self._save.set()
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self.stop = True
                self._num_interrupts += number == signal.SIGINT
                if self._num_interrupts > 1:
                    os.write(2, _AT_ONCE)  # not through `logging`, whose lock the main thread may hold
                    os._exit(Stopped.exit_code)
