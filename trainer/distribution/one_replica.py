"""What a process with one replica does by itself, whoever its neighbours are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf


class OneReplica:
    """The part of the protocol that needs no other replica: plain variables, plain iterators, plain calls."""

    def scope(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def iterate(self, batches: tf.data.Dataset) -> Iterator[Any]:
        return iter(batches)

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)

    def update(self, function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], only_if: tf.Tensor) -> None:
        def change_all() -> tf.Tensor:
            for each in arguments:
                function(*each)
            return tf.constant(True)

        tf.cond(only_if, change_all, lambda: tf.constant(False))

    def local(self, value: Any) -> tuple[Any, ...]:
        return (value,)
