"""One replica in one process: nothing to agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribution import devices


class SingleDistribution:
    """One device: the first GPU where there is one, otherwise the CPU."""

    name = "single"
    rank = 0
    num_processes = 1
    replicas = range(1)
    num_replicas = 1
    is_chief = True

    def __init__(self) -> None:
        devices.use_gpu(local_rank=0, local_size=1)

    def scope(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def iterate(self, batches: tf.data.Dataset) -> Iterator[Any]:
        return iter(batches)

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(tensors)

    def update(self, function: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
        for each in arguments:
            function(*each)

    def local(self, value: Any) -> tuple[Any, ...]:
        return (value,)

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        return values

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        return None

    def close(self) -> None:
        return None
