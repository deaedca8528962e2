"""What is kept of memory. The C library gives back what compiling left, but not what each step takes again; and Python does not
look for garbage in what is there to stay."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

# Of <malloc.h>: by how many bytes more than is asked for a heap grows, and how many stay free at its end.
M_TOP_PAD = -2
# What glibc gives a thread's heap at most.
KEPT_BYTES = 64 << 20

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def keep_free_ends() -> None:
    """Has each heap end in free memory, from which large buffers are taken. What does not fit there glibc maps anew each time
    and gives back, and the system fills its pages with zeros: those of matrix products took a tenth of a step. To be called
    before TensorFlow is imported: a heap grows only for what is small, so later it would not get its free end."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_TOP_PAD, KEPT_BYTES)


@contextmanager
def made_to_stay() -> Iterator[None]:
    """What is made inside Python does not search for cycles of garbage, neither meanwhile nor later. TensorFlow's modules are
    half a million objects, and looking through them again and again took a quarter of the time of their import."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def compiled_by_first_call(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, of which the first call compiles: after it what compiling took goes back to the system. That is hundreds of
    megabytes of small pieces, which glibc would keep."""
    is_compiled = False

    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        nonlocal is_compiled
        result = function(*arguments, **options)
        if not is_compiled:
            if (libc := _glibc()) is not None:
                libc.malloc_trim(0)
            is_compiled = True
        return result

    return call


def _glibc() -> Any:
    """The C library, where it is the one that has these functions."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
