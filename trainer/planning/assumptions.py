"""The figures of the cluster that a plan rests on, each with where it comes from: the command line, or a default."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.check import amount
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.planning.cost import Cluster
from trainer.planning.hardware import ACCELERATORS, Precision
from trainer.planning.request import Request

# Model FLOPs over the peak. NVIDIA's BERT-large on one A100 reaches 0.37 in mixed precision and 0.44 in TF32 (docs/scaling.md
# has the arithmetic and the source); rounded down.
_UTILIZATION: dict[Precision, float] = {"float32": 0.4, "bfloat16": 0.35, "float16": 0.35}
# What NCCL itself reckons with for a step of its ring (src/graph/tuning.cc, protocol Simple), in seconds.
_LATENCY = 14.0e-6
_LINK_LATENCY = {"NVLink": 3.4e-6, "PCIe": 5.7e-6}
# The rest is for what the estimate leaves out: buffers of collectives and of the compiler, fragments, CUDA itself.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Assumptions:
    """cluster:       what the step's cost is computed from
    memory:        bytes of a device that may be used
    price:         of a device for an hour; None where it was not given
    lines:         an option, its value, and what it is or where it comes from
    """

    accelerator: str
    cluster: Cluster
    memory: float
    price: float | None
    lines: tuple[tuple[str, str, str], ...]


def assume(request: Request, config: Config) -> Assumptions:
    """What was asked for, completed by data sheets and defaults.

    Raises ConfigError where the device lacks the precision, or the backend cannot have so many replicas.
    """
    _refuse_other_backends(request, config)
    peak, peak_source = _peak(request, config.train.precision)
    known = ACCELERATORS.get(request.accelerator)
    sheet = known.source if known else ""
    memory = _figure(request.memory, known.memory if known else None, sheet)
    share = _figure(request.memory_share, _MEMORY_SHARE, "a default: the estimate leaves out buffers and fragments")
    own = "a default, from NVIDIA's BERT on one A100; a run's metrics.jsonl has its own (model_flops_utilization)"
    utilization = _figure(request.utilization, _UTILIZATION[config.train.precision], own)
    rate = _figure(request.memory_bandwidth, known.memory_bandwidth if known else None, sheet)
    lines = [
        ("--flops", f"{peak / 1e12:,.4g}TFLOP/s", f"peak in {config.train.precision}: {peak_source}"),
        ("--utilization", f"{utilization.value:g}", f"of the peak: {utilization.origin}"),
        ("--memory", amount(memory.value), memory.origin),
        ("--memory-share", f"{share.value:g}", share.origin),
        ("--memory-bandwidth", gigabytes(rate.value), rate.origin),
    ]
    link = link_latency = bandwidth = latency = _NOTHING_IS_SENT
    if request.devices_per_node > 1:
        link = _figure(
            request.link_bandwidth, known.link_bandwidth if known else None, f"{known.link}, {sheet}" if known else ""
        )
        link_latency = _figure(request.link_latency, _LINK_LATENCY[known.link] if known else None, _NCCL)
        lines.append(("--link-bandwidth", gigabytes(link.value), f"one way, within a node: {link.origin}"))
        lines.append(("--link-latency", microseconds(link_latency.value), f"a message within a node: {link_latency.origin}"))
    if request.num_nodes > 1:
        bandwidth = _figure(request.bandwidth, None, "")
        latency = _figure(request.latency, _LATENCY, _NCCL)
        shared = f"one way, shared by a node's devices, all of it reached: {bandwidth.origin}"
        lines.append(("--bandwidth", gigabytes(bandwidth.value), shared))
        lines.append(("--latency", microseconds(latency.value), f"a message between nodes: {latency.origin}"))
    cluster = Cluster(
        num_nodes=request.num_nodes,
        devices_per_node=request.devices_per_node,
        peak=peak,
        utilization=utilization.value,
        memory_bandwidth=rate.value,
        link_bandwidth=link.value,
        link_latency=link_latency.value,
        bandwidth=bandwidth.value,
        latency=latency.value,
    )
    return Assumptions(request.accelerator, cluster, memory.value * share.value, request.price, tuple(lines))


@dataclass(frozen=True)
class _Figure:
    value: float
    origin: str


_NOTHING_IS_SENT = _Figure(1.0, "")
_NCCL = "a default, NCCL's own for a step of its ring"


def _figure(given: float | None, default: float | None, origin: str) -> _Figure:
    if given is not None:
        return _Figure(given, "as given")
    assert default is not None, "the command line demands what has no default"
    return _Figure(default, origin)


def gigabytes(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:,.4g}GB/s"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.4g}us"


def _peak(request: Request, precision: Precision) -> tuple[float, str]:
    if request.peak is not None:
        return request.peak, "as given"
    known = ACCELERATORS[request.accelerator]
    peak = known.peak(precision)
    if peak is None:
        raise ConfigError(
            f"train.precision: got {precision}, which {request.accelerator} has no matrix units for; "
            "expected float16 or float32 there"
        )
    return peak, known.source


def _refuse_other_backends(request: Request, config: Config) -> None:
    num_devices, given = request.num_nodes * request.devices_per_node, config.distribution
    if given.backend == "single" and num_devices > 1:
        raise ConfigError(f"distribution.backend: got single, expected another for {num_devices} devices")
    if given.backend == "mirrored" and request.num_nodes > 1:
        raise ConfigError(f"distribution.backend: got mirrored, expected horovod or multiworker for {request.num_nodes} nodes")
    if given.num_replicas not in (None, num_devices):
        raise ConfigError(
            f"distribution.num_replicas: got {given.num_replicas}, expected nothing, or the {num_devices} of --gpus-per-node"
        )
