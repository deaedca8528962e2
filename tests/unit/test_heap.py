"""What a first call leaves behind goes back to the system, measured by what is resident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.heap import compiled_by_first_call

MEGABYTE = 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_the_first_call_freed_is_given_back() -> None:
    kept = []

    def fill() -> int:
        """Takes and frees 128 MiB in small pieces, of which the last stays; what is resident when they are free."""
        pieces = [bytes(1024) for _ in range(128 * 1024)]
        kept.append(pieces.pop())
        del pieces
        return resident_bytes()

    fill_and_return = compiled_by_first_call(fill)
    before = fill_and_return()
    assert resident_bytes() < before - 64 * MEGABYTE
    # Later calls find it worth keeping: they need it again.
    again = fill_and_return()
    assert resident_bytes() > again - 64 * MEGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_what_is_taken_again_and_again_is_not_mapped_anew_each_time() -> None:
    """As matrix products take their buffers: aligned, by a thread, 20 times 3 MiB."""
    program = """
import ctypes, resource, sys, threading
from trainer.heap import keep_free_ends
if sys.argv[1] == "keep":
    keep_free_ends()
libc = ctypes.CDLL(None)
def take():
    for _ in range(20):
        block = ctypes.c_void_p()
        assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(4096), ctypes.c_size_t(3 << 20)) == 0
        ctypes.memset(block, 1, 3 << 20)
        libc.free(block)
thread = threading.Thread(target=take)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def page_faults(mode: str) -> int:
        command = [sys.executable, "-c", program, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert page_faults("keep") < 3000 < 12_000 < page_faults("leave")


def test_arguments_results_and_errors_are_those_of_the_function() -> None:
    def divide(dividend: float, *, divisor: float) -> float:
        return dividend / divisor

    call = compiled_by_first_call(divide)
    with pytest.raises(ZeroDivisionError):
        call(1.0, divisor=0.0)
    assert call(3.0, divisor=2.0) == 1.5


def test_what_is_made_to_stay_is_not_searched_for_garbage() -> None:
    """In a process of its own: what is frozen stays so."""
    program = """
import gc
from trainer.heap import made_to_stay
class Node: pass
def cycles(number):
    nodes = [Node() for _ in range(number)]
    for node in nodes: node.itself = node
    return nodes
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]))
with made_to_stay():
    kept = cycles(100_000)
    assert collections == [], collections
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
assert not any(isinstance(each, Node) for each in gc.get_objects())
# Later garbage is still found.
lost = cycles(10)
del lost
assert gc.collect() >= 10
# Who collects by hand goes on doing so, also after an error.
gc.disable()
try:
    with made_to_stay():
        raise KeyError
except KeyError:
    assert not gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
