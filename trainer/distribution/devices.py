"""What this process computes on: GPUs with memory growth, logical CPU devices, and threads.

Called once, before TensorFlow starts its runtime.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.errors import BackendError

logger = logging.getLogger(__name__)

ChooseNumLanes = Callable[[int, int], int]  # of the number of replicas, and of the cores that one of them has


def use_gpu(local_rank: int, local_size: int) -> bool:
    """Gives this process one GPU, by its rank on this machine. Whether there are any.

    Raises BackendError where some ranks would have a GPU and others none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return False
    if len(gpus) == 1 and local_size > 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        local_rank = 0  # the launcher already gave each process its own
    elif local_size > len(gpus):
        raise BackendError(f"{local_size} ranks on a machine with {len(gpus)} GPUs: start at most one rank a GPU")
    tf.config.set_visible_devices(gpus[local_rank], "GPU")
    tf.config.experimental.set_memory_growth(gpus[local_rank], True)
    return True


def require_one_kind(have_gpu: Sequence[bool]) -> None:
    """Raises BackendError where some ranks (their index) have a GPU and others none: what they reduce through is not the
    same, and they would wait for one another until the timeout."""
    without = [str(rank) for rank, has_gpu in enumerate(have_gpu) if not has_gpu]
    if 0 < len(without) < len(have_gpu):
        ranks = f"rank {without[0]} sees" if len(without) == 1 else f"ranks {', '.join(without)} see"
        raise BackendError(
            f"backend horovod: of {len(have_gpu)} ranks {ranks} no GPU, and the others do: give each machine its GPUs and a "
            "driver (nvidia-smi), or set CUDA_VISIBLE_DEVICES= for all ranks to train on CPUs"
        )


def use_all_gpus() -> list[str]:
    """Lets every visible GPU's memory grow as it is needed; their names."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return [f"GPU:{number}" for number in range(len(gpus))]


def split_cpu(num_replicas: int) -> list[str]:
    """Makes the CPU `num_replicas` logical devices; their names.

    Raises BackendError where TensorFlow has already started with fewer.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        if len(tf.config.get_logical_device_configuration(cpu) or [None]) < num_replicas:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_replicas)
    except RuntimeError as error:
        raise BackendError(f"{num_replicas} CPU replicas asked for after TensorFlow has started: {error}") from error
    return [device.name for device in tf.config.list_logical_devices("CPU")][:num_replicas]


def share_cores(local_rank: int, local_size: int) -> None:
    """Gives each rank on this machine its own cores, where the launcher has not: ranks that share cores wait for one
    another's threads, and Horovod's own threads compete with all of them.

    The number of threads that the launcher has set stands. Where it is another than that of the cores, a container's limit
    leaves the ranks less than the machine: which cores are free for them only the system knows.
    """
    cores = sorted(os.sched_getaffinity(0))
    told = os.environ.get("TF_NUM_INTRAOP_THREADS")
    each = len(cores) // local_size
    if local_size > 1 and each > 0 and len(cores) == os.cpu_count() and told in (None, str(each)):
        cores = cores[local_rank * each : (local_rank + 1) * each]
        # Horovod's threads run already: on the cores of another rank they would hold up that one, and it all others.
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.sched_setaffinity(int(thread), cores)
    if told is not None:
        return  # TensorFlow reads it by itself, and what is set below would win over it
    try:
        tf.config.threading.set_intra_op_parallelism_threads(len(cores))
    except RuntimeError as error:
        raise BackendError(f"threads set after TensorFlow has started: {error}") from error


def start_lanes(choose: ChooseNumLanes | None, num_replicas: int) -> int:
    """How many lanes (`trainer.lanes`) the replica of this process computes in. Where they are several, TensorFlow gets one
    thread for an operation, and as many operations go on at once.

    A number of threads that is set counts as that of the cores. Without `choose`, with a GPU, and where TensorFlow has started
    with other threads, there is one lane.
    """
    if choose is None or tf.config.list_physical_devices("GPU"):
        return 1
    num_cores = int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0)) or len(os.sched_getaffinity(0))
    num_lanes = choose(num_replicas, num_cores)
    if num_lanes > 1:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(num_lanes)
        except RuntimeError as error:
            logger.info("all cores share each operation, since TensorFlow has started: %s", error)
            return 1
    return num_lanes


def make_deterministic(seed: int) -> None:
    """Has TensorFlow take only kernels that give the same bits each time; one that has none raises UnimplementedError.

    Source: tensorflow.org/api_docs/python/tf/config/experimental/enable_op_determinism.
    """
    tf.random.set_seed(seed)
    tf.config.experimental.enable_op_determinism()
