"""What this machine has for a run: cores, GPUs, free ports, and Horovod."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from launch import cgroups
from launch.plan import Machine


def find_machine() -> Machine:
    """The cores this process may use, the GPUs that CUDA_VISIBLE_DEVICES leaves, and Horovod."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
        gpus = tuple(str(index) for index in range(num_gpus))
    else:
        # CUDA takes -1 for "none from here on" (CUDA C++ programming guide, environment variables).
        names = [name.strip() for name in visible.split(",")]
        gpus = tuple(names[: names.index("-1")] if "-1" in names else filter(None, names))
    threads_are_set = "TF_NUM_INTRAOP_THREADS" in os.environ
    return Machine(_num_cores(), gpus, _find_horovodrun(), threads_are_set)


def _num_cores() -> int:
    """Those that this process may run on, or fewer where a container's limit leaves it the time of fewer."""
    limit = cgroups.cores()
    num_cores = len(os.sched_getaffinity(0))
    return num_cores if limit is None else max(1, min(num_cores, math.ceil(limit)))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on. All are held until all are found, so that they differ."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in held]


def _find_horovodrun() -> str | None:
    """The `horovodrun` of this Python, where Horovod is installed; found without importing it."""
    if importlib.util.find_spec("horovod") is None:
        return None
    beside = Path(sys.executable).with_name("horovodrun")
    return str(beside) if beside.exists() else shutil.which("horovodrun")
