"""Horovod: one process a replica, the collectives of `horovod.tensorflow` on plain tensors.

Horovod's Keras wrappers do not know Keras 3 and are not used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trainer.config import DistributionConfig
from trainer.distribution import devices
from trainer.distribution.one_replica import OneReplica
from trainer.errors import BackendError


class HorovodDistribution(OneReplica):
    """Ranks started by `horovodrun` or `drumline launch`; on its own, one rank."""

    name = "horovod"

    def __init__(self, config: DistributionConfig) -> None:
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
        if not tf.config.list_physical_devices("GPU"):
            # Horovod looks for work once a cycle, on the cores that compute: at its 1 ms, 5 percent of their time.
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "5")
        hvd.init()
        self._hvd = hvd
        self.rank, self.num_processes = hvd.rank(), hvd.size()
        self.num_replicas, self.replicas = self.num_processes, range(self.rank, self.rank + 1)
        self.is_chief = self.rank == 0
        self.address = _address(is_one_machine=hvd.local_size() == hvd.size())
        devices.share_cores(hvd.local_rank(), hvd.local_size())
        has_gpu = devices.use_gpu(hvd.local_rank(), hvd.local_size())
        self._has_nccl = has_gpu and bool(hvd.nccl_built())

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Over Gloo float16 goes by a reduce-scatter and an all-gather: Horovod's all-reduce adds it one by one."""
        if self.num_processes == 1:
            return list(tensors)
        if self._has_nccl or tensors[0].dtype != tf.float16:
            return list(self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Sum))
        sizes = [each.shape.num_elements() for each in tensors]
        padding = -sum(sizes) % self.num_processes
        flat = tf.concat([*(tf.reshape(each, (-1,)) for each in tensors), tf.zeros([padding], tf.float16)], 0)
        (total,) = self.all_gather(self.reduce_scatter([flat]))
        parts = tf.split(total[: sum(sizes)], sizes)
        return [tf.reshape(part, each.shape) for part, each in zip(parts, tensors, strict=True)]

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """NCCL's on GPUs. Horovod's over Gloo takes longer than its all-reduce (1.5 to 3 times as long for two ranks of one
        machine), so there the ranks exchange their pieces, and each adds up in float32 those it gets, in the order of the
        ranks."""
        if self.num_processes == 1:
            return list(tensors)
        if self._has_nccl:
            return list(self._hvd.grouped_reducescatter(list(tensors), op=self._hvd.Sum))
        pieces_NP = tf.concat([tf.reshape(each, (self.num_processes, -1)) for each in tensors], 1)
        received_NP = tf.ensure_shape(self._hvd.alltoall(pieces_NP), pieces_NP.shape)
        total_P = tf.add_n([tf.cast(piece_P, tf.float32) for piece_P in tf.unstack(received_NP)])
        lengths = [each.shape.num_elements() // self.num_processes for each in tensors]
        return tf.split(tf.cast(total_P, pieces_NP.dtype), lengths)

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        if self.num_processes == 1:
            return list(pieces)
        return list(self._hvd.grouped_allgather(list(pieces)))

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        if self.num_processes == 1:
            return values
        with tf.device("CPU:0"):
            return self._hvd.allreduce(tf.constant(values), op=self._hvd.Sum, name="host_sum").numpy()

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        if self.num_processes > 1:
            self._hvd.broadcast_variables(list(variables), root_rank=0)

    def close(self) -> None:
        # Horovod itself is shut down when the process ends: a second `init` in one process could meet the addresses of the
        # first, since the rendezvous keeps them.
        self.sum_over_processes(np.zeros(1, np.int64))


def _address(is_one_machine: bool) -> str:
    """The name that `horovodrun` was given for this machine; mpirun sets none."""
    if is_one_machine:
        return "localhost"
    name = os.environ.get("HOROVOD_HOSTNAME", "localhost")
    return socket.gethostname() if name in ("localhost", "127.0.0.1") else name


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
