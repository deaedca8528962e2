"""Which backend runs: the one that the configuration names, or, for `auto`, the one that the surroundings call for."""

from __future__ import annotations

import logging
import os

import tensorflow as tf

from trainer.config import DistributionConfig
from trainer.distribution.devices import ChooseNumLanes
from trainer.distribution.horovod import HorovodDistribution
from trainer.distribution.protocol import Distribution
from trainer.distribution.single import SingleDistribution
from trainer.distribution.strategy import connect_mirrored, connect_multiworker

logger = logging.getLogger(__name__)


def connect(config: DistributionConfig, choose_num_lanes: ChooseNumLanes | None = None) -> Distribution:
    """Joins the other replicas. Before it nothing may have used TensorFlow's devices.

    `choose_num_lanes` says how many lanes a CPU computes in (`trainer.lanes`); without it all cores share each operation.
    """
    backend: str = config.backend
    if backend == "auto":
        backend, reason = _choose()
        logger.info("distribution.backend: auto chose %s, because %s", backend, reason)
    match backend:
        case "single":
            return SingleDistribution(choose_num_lanes)
        case "mirrored":
            return connect_mirrored(config, choose_num_lanes)
        case "multiworker":
            return connect_multiworker(config, choose_num_lanes)
        case "horovod":
            return HorovodDistribution(config, choose_num_lanes)
    raise AssertionError(f"no backend {backend}")


def _choose() -> tuple[str, str]:
    if "HOROVOD_RANK" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ:
        return "horovod", "this process was started as a rank of horovodrun or mpirun"
    if "TF_CONFIG" in os.environ:
        return "multiworker", "TF_CONFIG is set"
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if num_gpus > 1:
        return "mirrored", f"this machine has {num_gpus} GPUs and no launcher started more than one process"
    return "single", "no launcher started more than one process and there is " + ("one GPU" if num_gpus else "no GPU")
