"""What ranks exchange through shared memory: threads of this process; tests/integration/test_backends.py has real ranks."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from trainer.errors import BackendError

pytestmark = [
    pytest.mark.usefixtures("tensorflow"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="ranks share memory on x86-64 alone"),
]

# More than a window, to its edge, of no number, and a scalar.
SHAPES: list[tuple[int, ...]] = [(3, 70_001), (), (131_072,), (0,), (5, 6)]


def on_ranks(
    num_ranks: int,
    function: Callable[[int, Any], Any],
    timeout_seconds: float = 60.0,
    offered: Callable[[int, Any], Any] = lambda rank, values: values,
) -> list[Any]:
    """What `function`, called with each rank and its SharedMemory (or None) in a thread of its own, returns. `offered` may
    change what a rank tells the others."""
    from trainer.distribution.shared_memory import share_memory

    barrier, table = threading.Barrier(num_ranks), [np.zeros(0, np.int64)] * num_ranks

    def rank(number: int) -> Any:
        def gather(values: Any) -> Any:
            table[number] = np.copy(offered(number, values))
            barrier.wait()
            gathered = np.stack(table)
            barrier.wait()
            return gathered

        return function(number, share_memory(number, gather, timeout_seconds))

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(rank, range(num_ranks)))


def numbers(rank: int, shape: tuple[int, ...], dtype: str) -> Any:
    generator = np.random.default_rng(rank + 10 * len(shape) + sum(shape))
    return (100 * generator.standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_sums(num_ranks: int, dtype: str) -> None:
    def sums(rank: int, memory: Any) -> list[list[Any]]:
        told = []
        for _ in range(2):  # the windows take turns: begin the second time where the first has ended
            results = [np.empty(shape, dtype) for shape in SHAPES]
            memory.sums([numbers(rank, shape, dtype) for shape in SHAPES], results)
            told.append(results)
        return told

    for shape_number, shape in enumerate(SHAPES):
        wide = "int64" if dtype == "int64" else "float32"
        expected = numbers(0, shape, dtype).astype(wide)
        for rank in range(1, num_ranks):
            expected = expected + numbers(rank, shape, dtype)
        for told in on_ranks(num_ranks, sums):
            for results in told:
                np.testing.assert_array_equal(results[shape_number], np.asarray(expected, dtype))


@pytest.mark.parametrize("in_graph", [False, True])
def test_collectives_on_tensors(in_graph: bool) -> None:
    """Results of earlier calls keep their values, since their memory is only used again once nothing holds them."""
    import tensorflow as tf

    num_ranks, lengths = 2, (400_000, 6)

    def collectives(rank: int, memory: Any) -> list[list[Any]]:
        def all_three(step: Any) -> list[Any]:
            values = [
                tf.ones(length) * (tf.cast(step, tf.float32) + rank) + tf.range(length, dtype=tf.float32) for length in lengths
            ]
            pieces = memory.reduce_scatter(values)
            return [*memory.all_reduce(values), *pieces, *memory.all_gather(pieces)]

        if in_graph:
            all_three = tf.function(all_three, autograph=False)
        return [all_three(tf.constant(step)) for step in range(4)]

    for rank, kept in enumerate(on_ranks(num_ranks, collectives)):
        for step, (first, second, first_piece, second_piece, first_whole, second_whole) in enumerate(kept):
            for length, total, piece, whole in (
                (lengths[0], first, first_piece, first_whole),
                (lengths[1], second, second_piece, second_whole),
            ):
                expected = 2 * np.arange(length, dtype=np.float32) + 2 * step + 1
                half = length // 2
                np.testing.assert_array_equal(total, expected)
                np.testing.assert_array_equal(piece, expected[rank * half : (rank + 1) * half])
                np.testing.assert_array_equal(whole, expected)


def test_infinity_and_nan_are_sums_like_others() -> None:
    def sums(rank: int, memory: Any) -> Any:
        (result,) = results = [np.empty(3, np.float32)]
        memory.sums([np.array([np.inf, np.inf * (1 - 2 * rank), np.nan], np.float32)], results)
        return result

    for result in on_ranks(2, sums):
        np.testing.assert_array_equal(result, [np.inf, np.nan, np.nan])


def test_ranks_that_exchange_different_things_are_told() -> None:
    def sums(rank: int, memory: Any) -> str:
        arrays = [np.zeros(10 + rank, np.float32)]
        with pytest.raises(BackendError) as caught:
            memory.sums(arrays, arrays)
        return str(caught.value)

    first, second = on_ranks(2, sums)
    assert "rank 0 exchanges 40 bytes with the others where rank 1 exchanges 44: they do not run the same program" in first
    assert "rank 1 exchanges 44 bytes with the others where rank 0 exchanges 40" in second


def test_a_rank_that_does_not_come_is_named() -> None:
    def sums(rank: int, memory: Any) -> str:
        if rank == 1:
            return ""
        with pytest.raises(BackendError) as caught:
            memory.sums([np.zeros(1)], [np.zeros(1)])
        return str(caught.value)

    told, _ = on_ranks(2, sums, timeout_seconds=0.2)
    assert told == (
        "rank 1 did not come within 0.2 s (distribution.timeout_seconds) to where rank 0 waits for it, "
        "though its process is there"
    )


def test_a_rank_that_has_ended_is_named() -> None:
    """Its process is a real one, which ends while it is waited for."""
    from trainer.distribution.shared_memory import WINDOW_BYTES, Rank, Windows

    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"]) as process:
        ranks = [
            Rank(np.zeros(4, np.int64), np.zeros((2, WINDOW_BYTES), np.uint8), os.pidfd_open(pid))
            for pid in (os.getpid(), process.pid)
        ]
        windows = Windows(0, ranks, timeout_seconds=60.0)
        with pytest.raises(BackendError, match="rank 1 has ended while rank 0 waited for it; what it printed last says why"):
            windows.exchange([np.zeros(1)], lambda *_: None)
    windows.close()


def test_where_one_rank_cannot_share_none_does(caplog: pytest.LogCaptureFixture) -> None:
    """As in containers whose processes do not see each other: a process of that number there is another one's."""

    def mistaken(rank: int, offer: Any) -> Any:
        return np.array([os.getppid(), *offer[1:]]) if rank == 1 and len(offer) == 3 else offer

    with caplog.at_level(logging.WARNING):
        assert on_ranks(2, lambda rank, memory: memory, offered=mistaken) == [None, None]
    assert "the ranks of this machine do not share memory" in caplog.text
    assert "they send over Gloo" in caplog.text
