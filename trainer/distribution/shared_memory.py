"""Collectives of ranks on the CPUs of one machine, through memory that all of them map.

Over Gloo what such ranks send each other goes through TCP's loopback: it is copied six times, and Horovod's threads take their
time from cores that compute. Here a rank copies its numbers, piece by piece, into a window that all ranks can read, and each
makes its result of what stands in all of the windows, while that is still in the processors' caches.
"""

from __future__ import annotations

import logging
import mmap
import os
import platform
import secrets
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import BackendError

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Read = Callable[[int, slice, list[Array]], None]
"""Called with the number of an array, a part of it, and the numbers that each rank's array has there, by rank."""

WINDOW_BYTES = 512 * 1024
"""A piece: those of the ranks of a machine fit into the processors' second or third cache."""
_HEADER_BYTES = 4096
_TOKEN, _COUNT, _SIZES = 0, 1, slice(2, 4)
_SPIN_SECONDS, _LONGEST_PAUSE = 2e-4, 0.01


@dataclass(frozen=True)
class Rank:
    """What a rank of this machine shows the others: a page, and two windows that take turns.

    header:  int64: a random number of this rank, how many pieces it has written, and, for the piece in each of its windows, of
             how many bytes in all that piece is one
    windows: uint8 [2, WINDOW_BYTES]
    process: a descriptor that can be read once the process has ended
    """

    header: Array
    windows: Array
    process: int


class Windows:
    """Exchanges arrays with the other ranks of this machine. Every rank must make the same exchanges in the same order."""

    def __init__(self, rank: int, ranks: Sequence[Rank], timeout_seconds: float) -> None:
        self.rank, self.num_ranks = rank, len(ranks)
        self._ranks, self._timeout_seconds = list(ranks), timeout_seconds
        self._count = 0

    def exchange(self, arrays: Sequence[Array], read: Read) -> None:
        """Gives arrays, all of one type, to all ranks, and calls `read` with what all have given, part by part.

        Raises BackendError where another rank has ended, does not come within the timeout, or gives arrays of another size.
        """
        vectors = [np.asarray(array).reshape(-1) for array in arrays]
        num_bytes, dtype = sum(vector.nbytes for vector in vectors), vectors[0].dtype
        windows = [each.windows.view(dtype) for each in self._ranks]
        for piece in _pieces([len(vector) for vector in vectors], WINDOW_BYTES // dtype.itemsize):
            side = self._count % 2
            for index, part, place in piece:
                windows[self.rank][side, place] = vectors[index][part]
            self._tell(side, num_bytes)
            self._wait_for_all(side, num_bytes)
            for index, part, place in piece:
                read(index, part, [window[side, place] for window in windows])

    def close(self) -> None:
        """Lets go of the processes. Nothing may be exchanged after it."""
        for rank in self._ranks:
            os.close(rank.process)

    def _tell(self, side: int, num_bytes: int) -> None:
        """That a piece is written. Whoever sees the count also sees the piece, since x86-64 keeps the order of writes.

        A rank that has written the next piece has read this one, so that two windows are enough.
        """
        self._count += 1
        header = self._ranks[self.rank].header
        header[_SIZES][side] = num_bytes
        header[_COUNT] = self._count

    def _wait_for_all(self, side: int, num_bytes: int) -> None:
        for number, rank in enumerate(self._ranks):
            if rank.header[_COUNT] < self._count:
                self._wait_for(number, rank)
            if rank.header[_SIZES][side] != num_bytes:
                raise BackendError(
                    f"rank {self.rank} exchanges {num_bytes:,} bytes with the others where rank {number} exchanges "
                    f"{rank.header[_SIZES][side]:,}: they do not run the same program with the same configuration"
                )

    def _wait_for(self, number: int, rank: Rank) -> None:
        began = time.monotonic()
        while rank.header[_COUNT] < self._count:
            waited = time.monotonic() - began
            if waited < _SPIN_SECONDS:
                continue
            if _has_ended(rank.process) and rank.header[_COUNT] < self._count:
                raise BackendError(
                    f"rank {number} has ended while rank {self.rank} waited for it; what it printed last says why"
                )
            if waited > self._timeout_seconds:
                raise BackendError(
                    f"rank {number} did not come within {self._timeout_seconds:g} s (distribution.timeout_seconds) to where "
                    f"rank {self.rank} waits for it, though its process is there"
                )
            time.sleep(min(waited / 8, _LONGEST_PAUSE))


class SharedMemory:
    """The collectives (`trainer.distribution.collectives.Collectives`) of the ranks of one machine."""

    carrier = "shared memory"

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._memory = _ResultMemory()

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return self._call(self.sums, tensors, [tensor.shape for tensor in tensors])

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        num_ranks, rank = self._windows.num_ranks, self._windows.rank

        def pieces(arrays: Sequence[Array], results: list[Array]) -> None:
            def add(index: int, part: slice, values: list[Array]) -> None:
                number, owner = divmod(index, num_ranks)
                if owner == rank:
                    _add_up(values, results[number][part])

            self._windows.exchange([row for array in arrays for row in array.reshape(num_ranks, -1)], add)

        return self._call(pieces, tensors, [[tensor.shape.num_elements() // num_ranks] for tensor in tensors])

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        num_ranks = self._windows.num_ranks

        def wholes(arrays: Sequence[Array], results: list[Array]) -> None:
            def copy(index: int, part: slice, values: list[Array]) -> None:
                for row, value in zip(results[index].reshape(num_ranks, -1), values, strict=True):
                    row[part] = value

            self._windows.exchange(arrays, copy)

        return self._call(wholes, pieces, [[piece.shape.num_elements() * num_ranks] for piece in pieces])

    def sums(self, arrays: Sequence[Array], results: list[Array]) -> None:
        """Writes the sums over all ranks into arrays of the same shapes; all ranks get the same bits."""
        flat = [result.reshape(-1) for result in results]
        self._windows.exchange(arrays, lambda index, part, values: _add_up(values, flat[index][part]))

    def close(self) -> None:
        """Nothing may be called after it."""
        self._windows.close()

    def _call(
        self,
        collective: Callable[[Sequence[Array], list[Array]], None],
        tensors: Sequence[tf.Tensor],
        shapes: Sequence[Sequence[int]],
    ) -> list[tf.Tensor]:
        """What `collective`, given arrays and results of these shapes, makes of tensors of one type."""
        dtype = tensors[0].dtype.as_numpy_dtype
        if tf.executing_eagerly():
            results = [np.empty(shape, dtype) for shape in shapes]
            collective([tensor.numpy() for tensor in tensors], results)
            return [tf.constant(result) for result in results]

        def call(*arrays: Array) -> list[Array]:
            results = self._memory.empty(shapes, dtype)
            collective(arrays, results)
            return results

        results = tf.numpy_function(call, tensors, [tensors[0].dtype] * len(tensors))
        return [tf.ensure_shape(result, shape) for result, shape in zip(results, shapes, strict=True)]


def share_memory(rank: int, gather: Callable[[Array], Array], timeout_seconds: float) -> SharedMemory | None:
    """What the ranks, all of this machine, share; None, on all of them, where the system does not let them.

    `gather` gives the int64 arrays of all ranks, stacked by rank.
    """
    length = _HEADER_BYTES + 2 * WINDOW_BYTES
    own, offer = -1, np.zeros(3, np.int64)
    refusal: str | None = None
    try:
        if platform.machine() not in ("x86_64", "AMD64"):
            raise OSError(f"processors of {platform.machine()} may reorder what they write")
        own = os.memfd_create("drumline")
        os.posix_fallocate(own, 0, length)
        token = secrets.randbits(62)
        os.pwrite(own, token.to_bytes(8, sys.byteorder), 0)
        offer[:] = os.getpid(), own, token
    except OSError as error:
        refusal = str(error)
    ranks = []
    try:
        ranks = [_open(int(process), int(file), int(token), length) for process, file, token in gather(offer)]
    except OSError as error:
        refusal = refusal or str(error)
    num_refusals = int(gather(np.array([refusal is not None], np.int64)).sum())
    if own >= 0:
        os.close(own)  # what all have mapped stays until the last of them ends, and has no name that could be left behind
    if num_refusals:
        logger.warning(
            "the ranks of this machine do not share memory (%s): they send over Gloo", refusal or "another rank says why"
        )
        return None
    return SharedMemory(Windows(rank, ranks, timeout_seconds))


def _open(process: int, file: int, token: int, length: int) -> Rank:
    """Maps what the process has offered; raises OSError where this is not to be had."""
    mapped: mmap.mmap | None = None
    with open(f"/proc/{process}/fd/{file}", "r+b") as opened:
        if os.fstat(opened.fileno()).st_size == length:
            mapped = mmap.mmap(opened.fileno(), length)
    if mapped is None or (header := np.frombuffer(mapped, np.int64, 4))[_TOKEN] != token:
        raise OSError(f"process {process} is not the rank that it is in its container")
    windows = np.frombuffer(mapped, np.uint8, offset=_HEADER_BYTES).reshape(2, WINDOW_BYTES)
    return Rank(header, windows, os.pidfd_open(process))


def _has_ended(process: int) -> bool:
    poll = select.poll()  # select itself knows no descriptor beyond 1,023
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def _pieces(lengths: Sequence[int], window: int) -> Iterator[list[tuple[int, slice, slice]]]:
    """Which parts of arrays of these lengths stand in a window at a time: (number of the array, its part, the window's)."""
    piece: list[tuple[int, slice, slice]] = []
    place = 0
    for index, length in enumerate(lengths):
        begin = 0
        while begin < length:
            taken = min(length - begin, window - place)
            piece.append((index, slice(begin, begin + taken), slice(place, place + taken)))
            begin, place = begin + taken, place + taken
            if place == window:
                yield piece
                piece, place = [], 0
    if piece:
        yield piece


def _add_up(values: list[Array], out: Array) -> None:
    """The sum of the ranks' numbers, in the order of the ranks; float16 is added in float32."""
    with np.errstate(all="ignore"):  # infinity and nan are the gradients' own, and found where the step looks for them
        total = np.empty(out.shape, np.float32) if out.dtype == np.float16 else out
        np.add(values[0], values[1], out=total, dtype=total.dtype)
        for value in values[2:]:
            np.add(total, value, out=total, dtype=total.dtype)
        if total is not out:
            out[...] = total


class _ResultMemory:
    """Memory for results that TensorFlow reads in place. What it has let go of is used again: the system clears new memory,
    which takes about as long as a sum."""

    _SMALL_BYTES, _MOST = 64 * 1024, 4
    _ALIGNMENT = 64
    """Of what TensorFlow reads without a copy."""

    def __init__(self) -> None:
        self._blocks: list[Array] = []

    def empty(self, shapes: Sequence[Sequence[int]], dtype: Any) -> list[Array]:
        """Small results, which may be kept for long, have memory of their own; the large ones of a call share a block."""
        sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape in shapes]
        places, needed = [], self._ALIGNMENT
        for size in sizes:
            places.append(needed)
            needed += -(-size // self._ALIGNMENT) * self._ALIGNMENT if size > self._SMALL_BYTES else 0
        block = self._block(needed)
        shift = -block.ctypes.data % self._ALIGNMENT - self._ALIGNMENT
        results = []
        for shape, size, place in zip(shapes, sizes, places, strict=True):
            if size > self._SMALL_BYTES:
                results.append(block[place + shift : place + shift + size].view(dtype).reshape(shape))
            else:
                results.append(np.empty(shape, dtype))
        return results

    def _block(self, num_bytes: int) -> Array:
        for block in self._blocks:
            # The list, the name and the call know it, and no result that lies in it.
            if block.nbytes == num_bytes and sys.getrefcount(block) == 3:
                return block
        block = np.empty(num_bytes, np.uint8)
        self._blocks = [*self._blocks[1 - self._MOST :], block]
        return block
