"""What the C library keeps of memory that was freed: not what compiling left, but what each step takes again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
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
