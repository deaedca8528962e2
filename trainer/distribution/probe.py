"""All-reduces a tensor between the replicas as a training would, and tells how fast that went and whether the sum was right.

    python -m trainer.distribution.probe CONFIG [section.key=value ...] [--result FILE]

The chief prints a line of JSON; `--result` gives it to every process, in a file. `drumline doctor` starts it as ranks.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.config_io import load_config
from trainer.distribution.choice import connect
from trainer.distribution.horovod import HorovodDistribution
from trainer.distribution.protocol import Distribution, gather
from trainer.errors import BackendError, DrumlineError
from trainer.files import json_bytes, write_atomically
from trainer.monitor.watchdog import Watchdog

# 16 MiB of float32: large enough that the network, not the call, takes the time.
_NUM_ELEMENTS = 4 * 2**20
_NUM_WARM_UPS, _NUM_TIMED = 2, 5
# What each element has beside its replica's number; prime, so that rings of any size cut the pattern differently.
_PERIOD = 97


def probe(config: Config, directory: Path, tell: Callable[[str], None] = lambda phase: None) -> dict[str, Any]:
    """What was measured; all but `rank` is the same on all processes, the times nearly so.

    `tell` hears what comes next, so that whoever waits knows where it stands. The watchdog of the configuration, with no
    more than `distribution.timeout_seconds` for each phase, ends a process whose peers do not arrive, and writes stacks to
    `directory`. Raises BackendError where the sum is wrong.
    """
    limit = config.distribution.timeout_seconds
    watch = config.watchdog.model_copy(update={"startup_seconds": limit, "enabled": True})
    with Watchdog(watch, directory) as watchdog:

        def phase(name: str) -> None:
            tell(name)
            watchdog.phase(name)

        phase("connecting to the others")
        distribution = connect(config.distribution)
        watchdog.join(distribution)
        phase("the first all-reduce")
        reduction = _Reduction(distribution)
        for _ in range(_NUM_WARM_UPS):
            reduction.run()
        wrong = reduction.num_wrong()
        clocks = _clocks(distribution)
        phase("the timed all-reduces")
        seconds = statistics.median(reduction.timed() for _ in range(_NUM_TIMED))
        phase("leaving together")
        distribution.close()
    if wrong:
        raise BackendError(
            f"the all-reduce over {distribution.num_replicas} replicas gave a wrong sum in {wrong:,} of {_NUM_ELEMENTS:,} "
            f"elements ({_library(distribution)}); a device, a driver or the network is at fault"
        )
    num_bytes = 4 * _NUM_ELEMENTS
    share = 2 * (distribution.num_replicas - 1) / distribution.num_replicas
    return {
        "rank": distribution.rank,
        "backend": distribution.name,
        "library": _library(distribution),
        "replicas": distribution.num_replicas,
        "processes": distribution.num_processes,
        "bytes": num_bytes,
        "seconds": seconds,
        # As NCCL's tests have it: what each link carries (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
        "bus_bytes_per_second": share * num_bytes / seconds,
        "clock_offsets_seconds": [round((clock - clocks[0]) / 1e6, 3) for clock in clocks],
    }


class _Reduction:
    """One all-reduce of the tensors of all replicas, again and again. An element of a replica's tensor is its place modulo
    `_PERIOD` and the replica's number: whole numbers, whose sum float32 holds exactly."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        numbers = tf.data.Dataset.from_tensor_slices(list(distribution.replicas)).repeat()
        self._values = self._make(distribution.iterate(numbers))
        self._reduce = tf.function(self._reduce_in_graph)
        self._sums: Any = None

    def run(self) -> None:
        self._sums = self._reduce(self._values)
        for each in self._distribution.local(self._sums):
            each[:1].numpy()  # waits until it is there

    def timed(self) -> float:
        began = time.perf_counter()
        self.run()
        return time.perf_counter() - began

    def num_wrong(self) -> int:
        """Elements of the last sum that are not what they should be, on the worst replica of this process."""
        num_replicas = self._distribution.num_replicas
        place = np.arange(_NUM_ELEMENTS) % _PERIOD
        expected = (num_replicas * place + num_replicas * (num_replicas - 1) // 2).astype(np.float32)
        return max(int(np.count_nonzero(each.numpy() != expected)) for each in self._distribution.local(self._sums))

    def _make(self, numbers: Iterator[Any]) -> Any:
        def value(number: tf.Tensor) -> tf.Tensor:
            place = tf.range(_NUM_ELEMENTS) % _PERIOD
            return tf.cast(place, tf.float32) + tf.cast(number, tf.float32)

        return self._distribution.run(value, (next(numbers),))

    def _reduce_in_graph(self, values: Any) -> Any:
        def reduce(value: tf.Tensor) -> tf.Tensor:
            # A strategy looks for the device that a tensor was made on; an argument has none.
            return self._distribution.all_reduce([tf.identity(value)])[0]

        return self._distribution.run(reduce, (values,))


def _clocks(distribution: Distribution) -> list[int]:
    """What the clock of each process says, in microseconds, at nearly the same moment: when a small collective is over. The
    first of its kind compiles, for as long as each needs."""
    for _ in range(2):
        distribution.sum_over_processes(np.zeros(1, np.int64))
    now = np.array([time.time_ns() // 1000], np.int64)
    return [int(clock) for clock in gather(distribution, now)[:, 0]]


def _library(distribution: Distribution) -> str:
    """What carries the tensors, as far as it can be told."""
    if isinstance(distribution, HorovodDistribution):
        return distribution.carrier
    return "NCCL" if tf.config.list_logical_devices("GPU") else "TensorFlow's own collectives"


def main(argv: Sequence[str]) -> int:
    """Runs the probe as one process; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.distribution.probe", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with tempfile.TemporaryDirectory() as directory:
            config = load_config(arguments.config, arguments.overrides)
            result = probe(config, Path(directory), lambda phase: print(f"probe: {phase}", file=sys.stderr, flush=True))
    except DrumlineError as error:
        for line in str(error).splitlines():
            print(f"drumline: {line}", file=sys.stderr)
        return error.exit_code
    if arguments.result is not None:
        write_atomically(arguments.result, json_bytes(result))
    if result["rank"] == 0:
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
