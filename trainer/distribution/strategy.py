"""`tf.distribute`: MirroredStrategy on the devices of one machine, MultiWorkerMirroredStrategy over processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import DistributionConfig
from trainer.distribution import devices
from trainer.errors import BackendError


class StrategyDistribution:
    """What both strategies share; `connect_mirrored` and `connect_multiworker` make one."""

    def __init__(
        self,
        name: str,
        strategy: tf.distribute.Strategy,
        rank: int,
        num_processes: int,
        timeout_seconds: float,
        num_lanes: int,
        address: str = "localhost",
    ) -> None:
        self.name, self.address = name, address
        self.rank, self.num_processes = rank, num_processes
        self.num_replicas = strategy.num_replicas_in_sync
        here = self.num_replicas // num_processes
        self.replicas = range(rank * here, (rank + 1) * here)
        self.is_chief = rank == 0
        self.num_lanes = num_lanes
        self._strategy = strategy
        self._options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout_seconds)
        self._sum = tf.function(self._sum_in_graph)

    def scope(self) -> AbstractContextManager[Any]:
        return self._strategy.scope()

    def iterate(self, batches: tf.data.Dataset) -> Iterator[Any]:
        return iter(self._strategy.distribute_datasets_from_function(lambda _: batches))

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return self._strategy.run(function, args=arguments)

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        if self.num_replicas == 1:
            return list(tensors)
        context = tf.distribute.get_replica_context()
        return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors), options=self._options))

    def reduce_scatter(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        raise AssertionError("the configuration demands horovod where the optimizer is sharded")

    def all_gather(self, pieces: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        raise AssertionError("the configuration demands horovod where the optimizer is sharded")

    def update(self, function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], only_if: tf.Tensor) -> None:
        def change_all(_: tf.Variable, wanted: tf.Tensor, arguments: Sequence[tuple[Any, ...]]) -> None:
            def apply() -> tf.Tensor:
                for each in arguments:
                    function(*each)
                return tf.constant(True)

            tf.cond(wanted, apply, lambda: tf.constant(False))

        def on_every_device(strategy: tf.distribute.Strategy, wanted: tf.Tensor, arguments: Sequence[tuple[Any, ...]]) -> None:
            # Of all that is distributed, variables and values alike, the function gets what is on the first variable's device.
            strategy.extended.update(arguments[0][0], change_all, args=(wanted, arguments), group=False)

        tf.distribute.get_replica_context().merge_call(on_every_device, args=(only_if, list(arguments)))

    def local(self, value: Any) -> tuple[Any, ...]:
        return self._strategy.experimental_local_results(value)

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        if self.num_processes == 1:
            return values
        return self.local(self._sum(tf.constant(values)))[0].numpy()

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        if self.num_processes == 1:
            return
        for variable in variables:
            value = variable.numpy()
            variable.assign(self.sum_over_processes(value if self.is_chief else np.zeros_like(value)))

    def close(self) -> None:
        self.sum_over_processes(np.zeros(1, np.int64))

    def _sum_in_graph(self, values: tf.Tensor) -> Any:
        def contribute(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first_here = tf.equal(context.replica_id_in_sync_group % len(self.replicas), 0)  # one contribution a process
            contribution = tf.where(is_first_here, values, tf.zeros_like(values))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, contribution, options=self._options)

        return self._strategy.run(contribute, args=(values,))


def connect_mirrored(
    config: DistributionConfig, choose_num_lanes: devices.ChooseNumLanes | None = None
) -> StrategyDistribution:
    """The GPUs of this machine, or, where there are none, logical devices of its CPU.

    Raises BackendError where there are fewer devices than `num_replicas`.
    """
    names = devices.use_all_gpus()
    # Before the CPU is split: that starts TensorFlow, whose threads then are what they are.
    num_lanes = devices.start_lanes(choose_num_lanes, num_replicas=1) if config.num_replicas in (None, 1) else 1
    if config.num_replicas is not None and len(names) < config.num_replicas:
        if names:
            raise BackendError(
                f"distribution.num_replicas: got {config.num_replicas}, but this machine has {len(names)} GPUs; ask for fewer"
            )
        names = devices.split_cpu(config.num_replicas)
    strategy = tf.distribute.MirroredStrategy(names[: config.num_replicas] or ["CPU:0"])
    return StrategyDistribution("mirrored", strategy, 0, 1, config.timeout_seconds, num_lanes)


def connect_multiworker(
    config: DistributionConfig, choose_num_lanes: devices.ChooseNumLanes | None = None
) -> StrategyDistribution:
    """The processes that TF_CONFIG lists.

    Raises BackendError where TF_CONFIG is missing or lacks what is needed.
    """
    try:
        description = json.loads(os.environ["TF_CONFIG"])
        cluster, task = description["cluster"], description["task"]
        chiefs = cluster.get("chief", [])
        num_processes = len(chiefs) + len(cluster["worker"])
        rank = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)
        address = str(cluster[task["type"]][int(task["index"])]).rpartition(":")[0].strip("[]")  # [::1]:2222 has brackets
    except KeyError as error:
        raise BackendError(
            f"backend multiworker: {error} is missing from the environment's TF_CONFIG; "
            "start with: drumline launch local CONFIG --workers N"
        ) from error
    except (ValueError, TypeError, IndexError) as error:
        raise BackendError(f"backend multiworker: TF_CONFIG cannot be read ({error}): {os.environ['TF_CONFIG']!r}") from error
    devices.use_all_gpus()
    num_lanes = devices.start_lanes(choose_num_lanes, num_processes)  # without a GPU each process is one replica
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=config.timeout_seconds)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return StrategyDistribution("multiworker", strategy, rank, num_processes, config.timeout_seconds, num_lanes, address)
