"""What the step and the loop may ask of a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from trainer.errors import UserError

Result = TypeVar("Result")


class Distribution(Protocol):
    """Replicas in step. A process holds one replica, or, under `mirrored`, all of them.

    name:          the backend, as the configuration names it
    rank:          number of this process, from 0
    num_processes: how many there are
    replicas:      numbers of the replicas that live in this process
    num_replicas:  how many there are in all processes
    is_chief:      whether this process writes what is written once
    num_lanes:     how many lanes each replica of this process computes in (`trainer.lanes`)
    address:       name under which the other processes reach this one's machine; "localhost" where all are on one
    """

    name: str
    rank: int
    num_processes: int
    replicas: range
    num_replicas: int
    is_chief: bool
    address: str
    num_lanes: int

    def scope(self) -> AbstractContextManager[Any]:
        """Variables created inside belong to all replicas."""

    def iterate(self, batches: tf.data.Dataset) -> Iterator[Any]:
        """An iterator, usable in a graph, over elements that stand in turn for this process's replicas."""

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Calls `function` once for each replica of this process, inside which the two methods below may be used."""

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The sums of the tensors, all of one type, over all replicas, in one fused collective. Inside `run` only."""

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Of the sums of vectors, of one type and each of a multiple of `num_processes` numbers, over all replicas: this
        rank's of as many equal pieces as there are ranks. With `horovod` alone."""

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The vectors of which each rank has a piece, on every rank; also outside `run`. With `horovod` alone."""

    def update(self, function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], only_if: tf.Tensor) -> None:
        """Calls `function` with each of the tuples, the first of which is a variable to change, where `only_if`, which is the
        same on all replicas, is true; otherwise changes nothing. Inside `run` only."""

    def local(self, value: Any) -> tuple[Any, ...]:
        """What `run` returned, by replica of this process."""

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        """The sum of an int64 or float32 array over all processes, on the host. Every process must call it."""

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Gives the chief's values to all processes."""

    def close(self) -> None:
        """Leaves together: no process ends while another may still wait for it."""


def any_process(distribution: Distribution, flag: bool) -> bool:
    """Whether the flag is set on at least one process: how a stop is agreed."""
    return bool(distribution.sum_over_processes(np.array([flag], np.int64))[0])


def chiefs(distribution: Distribution, value: int) -> int:
    """The chief's value, on every process."""
    return int(distribution.sum_over_processes(np.array([value if distribution.is_chief else 0], np.int64))[0])


def chiefs_bytes(distribution: Distribution, content: bytes) -> bytes:
    """The chief's bytes, on every process; what the others give is ignored."""
    values = np.zeros(chiefs(distribution, len(content)), np.int64)
    if distribution.is_chief:
        values[:] = np.frombuffer(content, np.uint8)
    return distribution.sum_over_processes(values).astype(np.uint8).tobytes() if len(values) else b""


def on_chief(distribution: Distribution, action: Callable[[], Result]) -> Result | None:
    """Calls `action` on the chief alone; its result there, None elsewhere.

    Where it raises a UserError, all processes do: none waits for a chief that has given up.
    """
    result, error = None, None
    if distribution.is_chief:
        try:
            result = action()
        except UserError as caught:
            error = caught
    if any_process(distribution, error is not None):
        raise error or UserError("the first process could not go on; its message says why")
    return result


def gather(distribution: Distribution, values: np.ndarray) -> np.ndarray:
    """The int64 or float32 arrays of all processes, of one shape, stacked by rank on a new first axis."""
    dtype = np.float32 if values.dtype == np.float32 else np.int64
    stacked = np.zeros((distribution.num_processes, *values.shape), dtype)
    stacked[distribution.rank] = values
    return distribution.sum_over_processes(stacked)
