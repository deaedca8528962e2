"""Ranks of one machine have cores of their own, for all of their threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, threading
from trainer.distribution import devices
done = threading.Event()
threading.Thread(target=done.wait).start()
devices.share_cores(local_rank=1, local_size=2)
print(*sorted({core for thread in os.listdir("/proc/self/task") for core in os.sched_getaffinity(int(thread))}))
done.set()
"""


@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) != os.cpu_count() or (os.cpu_count() or 1) < 2,
    reason="wants two cores, and all of the machine's",
)
def test_threads_that_run_already_move_to_the_rank_s_cores() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_NUM_INTRAOP_THREADS"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=environment)
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // 2
    assert done.stdout.split() == [str(core) for core in cores[each : 2 * each]]
