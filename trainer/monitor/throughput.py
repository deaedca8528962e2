"""What this machine could compute at best, and how much memory the process has used."""

from __future__ import annotations

import resource
import time

import tensorflow as tf

from trainer.distribution import Distribution
from trainer.models.products import product
from trainer.planning.hardware import Precision, accelerator_of


def peak_flops_per_second(precision: Precision, num_lanes: int = 1) -> tuple[float, str]:
    """Floating-point operations per second that one device reaches at best, and where the figure comes from.

    A known GPU's data sheet, otherwise a measured matrix product: one in each lane (`trainer.lanes`).
    """
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
        known = accelerator_of(name)
        peak = None if known is None else known.peak(precision)
        if known is not None and peak is not None:
            return peak, known.source
    return _measured_matrix_product(tf.dtypes.as_dtype(precision), num_lanes), "measured matrix product"


def num_devices(distribution: Distribution) -> int:
    """How many devices compute: a GPU for each replica; on CPUs one for each process, since its replicas share it."""
    return distribution.num_replicas if tf.config.get_visible_devices("GPU") else distribution.num_processes


def peak_memory_bytes() -> int:
    """The most memory this process has held so far: the GPU's where there is one, otherwise the resident set."""
    if tf.config.get_visible_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measured_matrix_product(dtype: tf.DType, num_lanes: int, size: int = 1024, repeats: int = 4) -> float:
    """The fastest of a few square products, as many at once as there are lanes, in floating-point operations per second."""
    square = tf.cast(tf.random.stateless_normal((size, size), (1, 2)), dtype)
    products = tf.function(lambda *squares: [product(each, each) for each in squares], autograph=False)
    fastest = float("inf")
    for _ in range(1 + repeats):
        began = time.perf_counter()
        for each in products(*[square] * num_lanes):
            each.numpy()
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * size**3 * num_lanes / fastest
