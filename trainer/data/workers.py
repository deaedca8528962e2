"""Runs a function over many units of work on all cores, in fresh processes that never outlive this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from trainer.errors import DrumlineError

Work = TypeVar("Work")
Result = TypeVar("Result")


def num_cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(num_processes: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that start when there is work for them and end with the block; None where this process is enough."""
    if num_processes <= 1:
        yield None
        return
    # Spawned, not forked: a fork would copy locks that threads of libraries hold.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_start_worker)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise DrumlineError("a worker process died, perhaps for want of memory; run again to go on with the rest") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def run_all(
    pool: ProcessPoolExecutor | None, function: Callable[[Work], Result], works: Sequence[Work]
) -> Iterator[tuple[Work, Result]]:
    """Yields each work and its result as they come. The first error ends it all and is raised here."""
    if pool is None or len(works) <= 1:
        for work in works:
            yield work, function(work)
        return
    futures = {pool.submit(function, work): work for work in works}
    for future in as_completed(futures):
        yield futures.pop(future), future.result()


def _start_worker() -> None:
    """A worker uses one core, leaves Ctrl-C to its parent, and dies with it, even where that was killed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
