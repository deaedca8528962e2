"""Signals to a real process: they become flags at once, also while the main thread is in C and comes back to no Python."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.training import ROOT, environment
from trainer.stop import StopRequest

# Another thread tells each change of the flags. `deep` waits in C for a lock that nobody opens, which no signal ends.
PROGRAM = """
import ctypes, sys, threading, time
from trainer.stop import StopRequest

def tell(stop):
    told = False
    while True:
        if stop.take_save():
            print("save", flush=True)
        if stop.stop and not told:
            told = True
            print("stop", flush=True)
        time.sleep(0.005)

def deep():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

def shallow():
    while True:
        time.sleep(0.05)

with StopRequest() as stop:
    threading.Thread(target=tell, args=(stop,), daemon=True).start()
    print("ready", flush=True)
    {"deep": deep, "shallow": shallow}[sys.argv[1]]()
"""


@contextmanager
def started(where: str) -> Iterator[subprocess.Popen[str]]:
    command, pipes = [sys.executable, "-c", PROGRAM, where], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)  # until it is in C
        yield process
        process.kill()


@pytest.mark.parametrize("where", ["deep", "shallow"])
def test_flags_are_set_at_once_and_a_save_is_taken_once(where: str) -> None:
    with started(where) as process:
        assert process.stdout is not None
        for number, told in ((signal.SIGUSR1, "save"), (signal.SIGUSR1, "save"), (signal.SIGTERM, "stop")):
            began = time.monotonic()
            process.send_signal(number)
            assert process.stdout.readline() == f"{told}\n"
            assert time.monotonic() - began < 1
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            process.send_signal(number)
            time.sleep(0.1)
        assert process.stdout.readline() == "save\n"
        assert process.poll() is None, "a second SIGTERM changes nothing"


@pytest.mark.parametrize("where", ["deep", "shallow"])
@pytest.mark.parametrize("before", [[], [signal.SIGTERM]])
def test_the_second_interrupt_leaves_at_once(where: str, before: list[int]) -> None:
    with started(where) as process:
        for number in [*before, signal.SIGINT]:
            process.send_signal(number)
            time.sleep(0.2)
        assert process.poll() is None, "the first interrupt only asks"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert time.monotonic() - began < 1
        assert process.returncode == 75
        assert out == "stop\n"
        assert err == "drumline: interrupted twice: leaving at once; what was not saved is lost\n"


def test_what_was_there_before_is_there_after() -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in signals]
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.stop and not stop.take_save()
    assert [signal.getsignal(number) for number in signals] == before
    assert signal.set_wakeup_fd(descriptor) == descriptor
