"""What a first call leaves behind goes back to the system, measured by what is resident."""

from __future__ import annotations

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


def test_arguments_results_and_errors_are_those_of_the_function() -> None:
    def divide(dividend: float, *, divisor: float) -> float:
        return dividend / divisor

    call = compiled_by_first_call(divide)
    with pytest.raises(ZeroDivisionError):
        call(1.0, divisor=0.0)
    assert call(3.0, divisor=2.0) == 1.5
