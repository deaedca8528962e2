"""Horovod: one process a replica, the collectives of `horovod.tensorflow` on plain tensors.

Horovod's Keras wrappers do not know Keras 3 and are not used.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trainer.config import DistributionConfig
from trainer.distribution import devices
from trainer.distribution.collectives import Collectives, OverGloo, OverNccl
from trainer.distribution.one_replica import OneReplica
from trainer.distribution.protocol import gather
from trainer.distribution.shared_memory import SharedMemory, share_memory
from trainer.errors import BackendError


class HorovodDistribution(OneReplica):
    """Ranks started by `horovodrun` or `drumline launch`; on its own, one rank."""

    name = "horovod"

    def __init__(self, config: DistributionConfig, choose_num_lanes: devices.ChooseNumLanes | None = None) -> None:
        # A rank that never arrives ends the others after this long, instead of being warned about for ever.
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(round(config.timeout_seconds)))
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(round(min(60.0, config.timeout_seconds / 2))))
        try:
            import horovod.tensorflow as hvd
        except (ImportError, tf.errors.NotFoundError) as error:  # not there, or built for another TensorFlow
            raise BackendError(
                f"backend horovod: Horovod does not load in this Python ({_first_line(error)}); "
                "in a clone of Drumline run: make horovod"
            ) from error
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        shares_memory = config.shared_memory and not has_gpu and _num_ranks("LOCAL_SIZE") == _num_ranks("SIZE") != 1
        if not has_gpu:
            # Horovod looks for work once a cycle, on the cores that compute: at its 1 ms, 5 percent of their time; at 5, 2.
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "20" if shares_memory else "5")
        hvd.init()
        self._hvd = hvd
        self.rank, self.num_processes = hvd.rank(), hvd.size()
        self.num_replicas, self.replicas = self.num_processes, range(self.rank, self.rank + 1)
        self.is_chief = self.rank == 0
        self.address = _address(is_one_machine=hvd.local_size() == hvd.size())
        devices.share_cores(hvd.local_rank(), hvd.local_size())
        devices.use_gpu(hvd.local_rank(), hvd.local_size())
        self.num_lanes = devices.start_lanes(choose_num_lanes, self.num_replicas)
        self._memory: SharedMemory | None = None
        devices.require_one_kind(gather(self, np.array(has_gpu, np.int64)).astype(bool).tolist())
        if shares_memory:
            self._memory = share_memory(self.rank, functools.partial(gather, self), config.timeout_seconds)
        self._collectives: Collectives = self._memory or (OverNccl(hvd) if has_gpu and hvd.nccl_built() else OverGloo(hvd))

    @property
    def carrier(self) -> str:
        """What the ranks' tensors go through, as in NCCL, Gloo, shared memory."""
        return self._collectives.carrier

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(tensors) if self.num_processes == 1 else self._collectives.all_reduce(tensors)

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(tensors) if self.num_processes == 1 else self._collectives.reduce_scatter(tensors)

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(pieces) if self.num_processes == 1 else self._collectives.all_gather(pieces)

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        if self.num_processes == 1:
            return values
        if self._memory is not None:
            total = np.empty_like(values)
            self._memory.sums([values], [total])
            return total
        with tf.device("CPU:0"):
            return self._hvd.allreduce(tf.constant(values), op=self._hvd.Sum, name="host_sum").numpy()

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        if self.num_processes > 1:
            self._hvd.broadcast_variables(list(variables), root_rank=0)

    def close(self) -> None:
        # Horovod itself is shut down when the process ends: a second `init` in one process could meet the addresses of the
        # first, since the rendezvous keeps them.
        self.sum_over_processes(np.zeros(1, np.int64))
        if self._memory is not None:
            self._memory.close()


def _num_ranks(of: str) -> int:
    """As `horovodrun`, `drumline launch` or `mpirun` says: SIZE, in all, or LOCAL_SIZE, on this machine."""
    return int(os.environ.get(f"HOROVOD_{of}") or os.environ.get(f"OMPI_COMM_WORLD_{of}") or 1)


def _address(is_one_machine: bool) -> str:
    """The name that `horovodrun` was given for this machine; mpirun sets none."""
    if is_one_machine:
        return "localhost"
    name = os.environ.get("HOROVOD_HOSTNAME", "localhost")
    return socket.gethostname() if name in ("localhost", "127.0.0.1") else name


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
