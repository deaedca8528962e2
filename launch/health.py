"""What this machine is like for a run: packages that load, GPUs and their driver, shared memory, limits, memory.

Each check returns its detail, or raises UserWarning for what slows a run down and UserError for what stops it.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launch import cgroups
from launch.plan import Machine
from trainer.errors import BackendError

_SURVEY = ("-m", "trainer.distribution.survey")
_SURVEY_SECONDS = 300.0  # TensorFlow is read from a file system that may be slow
_DRIVER_SECONDS = 60.0
# The oldest driver for each CUDA (docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility).
_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
_MIB, _GIB = 2**20, 2**30
# What NCCL's documentation asks containers to have (docs.nvidia.com/deeplearning/nccl, troubleshooting, shared memory).
_SHARED_MEMORY_BYTES = _GIB
# As Docker makes it where nothing is said; the ring buffers of a few ranks take more.
_LITTLE_SHARED_MEMORY_BYTES = 64 * _MIB
# A rank has some hundred threads and files: what it loads, a connection to each peer, the store's parts while they open.
_FEW_FILES, _FEW_PROCESSES = 1024, 1024


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver tells it; `memory_bytes` is None where there is no `nvidia-smi` to ask."""

    name: str
    memory_bytes: int | None
    driver: str


class Health:
    """This machine. What takes long to find out is found out once, when it is first asked for."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that the driver sees, whether or not a run shall use them. Raises BackendError where it does not answer."""
        program = shutil.which("nvidia-smi")
        if program is None:
            count, version = len(list(Path("/dev").glob("nvidia[0-9]*"))), Path("/proc/driver/nvidia/version")
            match = re.search(r"\s(\d+\.[\d.]+)\s", version.read_text()) if version.exists() else None
            return (Gpu("GPU", None, match[1] if match else "unknown"),) * count
        command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(
                f"nvidia-smi does not answer ({error}); see the machine's kernel log for Xid and NVRM"
            ) from error
        lines = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 2]
        if done.returncode or not lines:
            told = next(iter((done.stdout + done.stderr).strip().splitlines()), "it says nothing")
            raise BackendError(f"nvidia-smi fails with exit code {done.returncode} ({told}); load or update the driver")
        return tuple(Gpu(name, int(mib) * _MIB if mib.isdecimal() else None, driver) for name, mib, driver in lines)

    @cached_property
    def survey(self) -> Mapping[str, Mapping[str, Any]]:
        """What TensorFlow and Horovod say in a process of their own, by package; of one that took it down, a `problem`."""
        command = [sys.executable, *_SURVEY]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SURVEY_SECONDS, stdin=subprocess.DEVNULL)
            printed, complaints, ending = done.stdout, done.stderr, f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            printed, complaints, ending = "", "", f"no answer within {_SURVEY_SECONDS:.0f} s"
        found = {}
        for line in printed.splitlines():
            if line.startswith('{"package"'):
                content = json.loads(line)
                found[content["package"]] = content
        last = (complaints.strip().splitlines() or [""])[-1]
        for package in ("tensorflow", "horovod"):
            if package not in found:
                found[package] = {"problem": f"{ending}: {last}" if last else ending}
                break  # the rest was never asked
        return found

    def tensorflow(self) -> str:
        told = self.survey["tensorflow"]
        if "problem" in told:
            raise BackendError(f"does not load in {sys.executable} ({told['problem']}); in a clone of Drumline run: make setup")
        built_for = f"built for CUDA {told['cuda']}" if told["cuda"] else "built without CUDA"
        return f"{told['version']} loads, with Keras {told['keras']}; {built_for}"

    def horovod(self, reason: str | None) -> str:
        """`reason` is why a run needs it; None where none does."""
        told = self.survey.get("horovod")
        if told is None:
            raise UserWarning("not tried, since TensorFlow does not load")
        if "problem" in told:
            if reason is not None:
                raise BackendError(f"{told['problem']}, and {reason}; in a clone of Drumline run: make horovod")
            if told["problem"] == "not installed":
                return "not installed; nothing here needs it"
            raise UserWarning(f"does not load ({told['problem']}); nothing here needs it; to mend it run: make horovod")
        if self.machine.gpus and "NCCL" not in told["built"]:
            raise UserWarning(
                f"{told['version']} was built without NCCL: gradients go through the CPUs; run: make horovod ACCELERATOR=nccl"
            )
        return f"{told['version']} loads into this TensorFlow; built with {', '.join(told['built'])}"

    def accelerators(self) -> str:
        visible, there, told = self.machine.gpus, self.gpus, self.survey["tensorflow"]
        if not there and visible:
            raise BackendError(
                f"CUDA_VISIBLE_DEVICES names {', '.join(visible)}, and there is no /dev/nvidia* here; give the container its "
                "GPUs, or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
            )
        if not there:
            return f"none; training on {_count(self.machine.num_cores, 'core')}"
        if not visible:
            return f"{len(there)}, hidden by CUDA_VISIBLE_DEVICES; training on {_count(self.machine.num_cores, 'core')}"
        name, driver = f"{len(there)} x {there[0].name}", there[0].driver
        if "problem" in told:
            raise UserWarning(f"{name}, driver {driver}; what TensorFlow sees is not known, since it does not load")
        if told["cuda"] is None:
            raise BackendError(f"{name}, but this TensorFlow was built without CUDA; run: pip install 'drumline[gpu]'")
        oldest = _oldest_driver(told["cuda"])
        major = driver.partition(".")[0]
        if oldest is not None and major.isdecimal() and int(major) < oldest:
            raise BackendError(
                f"driver {driver} is too old for CUDA {told['cuda']}, which TensorFlow {told['version']} was built for; "
                f"update it to {oldest} or newer"
            )
        if len(told["gpus"]) < len(visible):
            raise BackendError(
                f"the driver has {name}, and TensorFlow sees {len(told['gpus'])} of {len(visible)}; for CUDA's libraries run: "
                "pip install 'drumline[gpu]', and see that CUDA_VISIBLE_DEVICES names GPUs that are there"
            )
        return f"{name}, driver {driver}, all seen by TensorFlow (CUDA {told['cuda']})"

    def shared_memory(self, num_ranks_here: int, folder: Path = Path("/dev/shm")) -> str:
        try:
            usage = shutil.disk_usage(folder)
        except OSError as error:
            told, free = f"{folder}: {error.strerror}", 0
        else:
            told, free = f"{amount(usage.total)}, {amount(usage.free)} free", usage.free
        mend = "docker run --shm-size=1g; in a pod, an emptyDir of medium Memory at /dev/shm"
        if len(self.machine.gpus) > 1 and num_ranks_here > 1 and free <= _LITTLE_SHARED_MEMORY_BYTES:
            raise BackendError(f"{told}; too little for NCCL with {num_ranks_here} ranks on this machine: {mend}")
        if free < (_SHARED_MEMORY_BYTES if len(self.machine.gpus) > 1 else _LITTLE_SHARED_MEMORY_BYTES + 1):
            raise UserWarning(f"{told}; NCCL between several GPUs wants {amount(_SHARED_MEMORY_BYTES)}: {mend}")
        return told

    def limits(self) -> str:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        tasks, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        group = cgroups.processes()
        known = [limit for limit in (tasks, group) if limit is not None and limit != resource.RLIM_INFINITY]
        processes = min(known, default=None)
        told = f"{files:,} open files, {'any number of' if processes is None else f'{processes:,}'} processes and threads"
        low = ["ulimit -n"] if files < _FEW_FILES else []
        low += ["ulimit -u, or the container's pids limit"] if processes is not None and processes < _FEW_PROCESSES else []
        if low:
            raise UserWarning(f"{told}; few for many ranks or a large store: raise {', and '.join(low)}")
        return told

    def cores(self) -> str:
        allowed, quota = self.machine.num_cores, cgroups.cores()
        if quota is not None and quota < allowed:
            raise UserWarning(
                f"{_count(allowed, 'core')} to be seen, and the time of {quota:g} to be had: threads will wait for each other; "
                f"set TF_NUM_INTRAOP_THREADS={max(1, int(quota))}, or give the container whole cores of its own"
            )
        return _count(allowed, "core")

    def replica_memory(self, num_replicas_here: int) -> tuple[int, str]:
        """How many bytes each of the replicas on this machine may have, and of what. Raises UserWarning where that is not
        known."""
        if self.machine.gpus:
            known = [gpu.memory_bytes for gpu in self.gpus if gpu.memory_bytes is not None]
            if not known:
                raise UserWarning("how much memory the GPUs have is not known: there is no nvidia-smi")
            return min(known), "a GPU"
        available, what = _available_bytes(), "this machine's free memory"
        limit = cgroups.memory_bytes()
        if limit is not None and (available is None or limit < available):
            available, what = limit, "the container's limit"
        if available is None:
            raise UserWarning("how much memory this machine has is not known: there is no /proc/meminfo")
        share = f", divided by {num_replicas_here}" if num_replicas_here > 1 else ""
        return available // num_replicas_here, f"{what}{share}"


def amount(num_bytes: float) -> str:
    """Bytes in a unit that leaves one to four digits."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"


def _oldest_driver(cuda: str) -> int | None:
    major = cuda.partition(".")[0]
    return _OLDEST_DRIVERS.get(int(major)) if major.isdecimal() else None


def _available_bytes() -> int | None:
    try:
        told = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(told[1]) * 1024 if told else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
