"""Whether XLA compiles what lies between the matrix products apart from those, as it does on a CPU (`elementwise`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from trainer.models.compilation_ahead import compiled_by_xla

_is_apart = ContextVar("is_apart", default=False)


@contextmanager
def compiled_apart(is_apart: bool = True) -> Iterator[None]:
    """While the graph is built inside, XLA compiles each chain by itself."""
    token = _is_apart.set(is_apart)
    try:
        yield
    finally:
        _is_apart.reset(token)


def is_apart() -> bool:
    """Whether the graph is being built inside `compiled_apart`."""
    return _is_apart.get()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as XLA compiles it by itself, whoever calls it: gradients are asked for outside `compiled_apart`."""

    @functools.wraps(function)
    def apart(*arguments: Any) -> Any:
        with compiled_apart():
            return function(*arguments)

    return compiled_by_xla(apart)
