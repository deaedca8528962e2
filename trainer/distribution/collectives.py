"""Horovod's collectives on lists of tensors: NCCL's where there are GPUs, and what goes best over Gloo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf


class Collectives(Protocol):
    """Of `trainer.distribution.protocol.Distribution` the three methods of these names, among two ranks or more.

    carrier: what the numbers go through
    """

    carrier: str

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]: ...

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]: ...

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]: ...


class OverNccl:
    carrier = "NCCL"

    def __init__(self, hvd: Any) -> None:
        self._hvd = hvd

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Sum))

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(self._hvd.grouped_reducescatter(list(tensors), op=self._hvd.Sum))

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(self._hvd.grouped_allgather(list(pieces)))


class OverGloo:
    """Or over MPI, where `mpirun` has started the ranks."""

    def __init__(self, hvd: Any) -> None:
        self._hvd, self._num_ranks = hvd, hvd.size()
        self.carrier = "MPI" if hvd.mpi_enabled() else "Gloo"

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """float16 goes by a reduce-scatter and an all-gather: Horovod's all-reduce adds it one by one."""
        if tensors[0].dtype != tf.float16:
            return list(self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Sum))
        sizes = [each.shape.num_elements() for each in tensors]
        padding = -sum(sizes) % self._num_ranks
        flat = tf.concat([*(tf.reshape(each, (-1,)) for each in tensors), tf.zeros([padding], tf.float16)], 0)
        (total,) = self.all_gather(self.reduce_scatter([flat]))
        parts = tf.split(total[: sum(sizes)], sizes)
        return [tf.reshape(part, each.shape) for part, each in zip(parts, tensors, strict=True)]

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Horovod's takes longer than its all-reduce (1.5 to 3 times as long for two ranks of one machine), so here the ranks
        exchange their pieces, and each adds up in float32 those it gets, in the order of the ranks."""
        pieces_NP = tf.concat([tf.reshape(each, (self._num_ranks, -1)) for each in tensors], 1)
        received_NP = tf.ensure_shape(self._hvd.alltoall(pieces_NP), pieces_NP.shape)
        total_P = tf.add_n([tf.cast(piece_P, tf.float32) for piece_P in tf.unstack(received_NP)])
        lengths = [each.shape.num_elements() // self._num_ranks for each in tensors]
        return tf.split(tf.cast(total_P, pieces_NP.dtype), lengths)

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(self._hvd.grouped_allgather(list(pieces)))
