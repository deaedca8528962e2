"""One replica in one process: nothing to agree on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trainer.distribution import devices
from trainer.distribution.one_replica import OneReplica


class SingleDistribution(OneReplica):
    """One device: the first GPU where there is one, otherwise the CPU."""

    name = "single"
    rank = 0
    num_processes = 1
    replicas = range(1)
    num_replicas = 1
    is_chief = True
    address = "localhost"

    def __init__(self, choose_num_lanes: devices.ChooseNumLanes | None = None) -> None:
        devices.use_gpu(local_rank=0, local_size=1)
        self.num_lanes = devices.start_lanes(choose_num_lanes, self.num_replicas)

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(tensors)

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(tensors)

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(pieces)

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        return values

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        return None

    def close(self) -> None:
        return None
