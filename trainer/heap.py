"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled_by_first_call(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, of which the first call compiles: after it what compiling took goes back to the system. That is hundreds of
    megabytes of small pieces, which glibc would keep."""
    is_compiled = False

    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        nonlocal is_compiled
        result = function(*arguments, **options)
        if not is_compiled:
            _return_free_memory()
            is_compiled = True
        return result

    return call


def _return_free_memory() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
