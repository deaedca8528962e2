"""The seconds of one update, by arithmetic: computing, reducing, updating, one after another.

Nothing is overlapped, because `trainer.step` reduces once, when the last micro-batch is done.
"""

from __future__ import annotations

from dataclasses import dataclass

# An update in float32 reads the gradient for its norm, then reads gradient and weight and writes the weight.
UPDATE_BYTES = 4 + 2 * 4 + 4
# Where the optimizer is sharded all pieces of the weights are read, and written into them.
GATHERED_BYTES = 2 * 4
# A further micro-batch's gradients: the sum is read and written, they are read.
ACCUMULATION_BYTES = 3 * 4


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal devices, in SI units.

    peak:              FLOP/s of a device at best, in the run's precision
    utilization:       the share of it that a model's FLOPs reach
    memory_bandwidth:  bytes per second of a device
    link_bandwidth:    bytes per second in one direction, of each device to another of its node
    bandwidth:         bytes per second in one direction, of a node to others: its devices share it
    link_latency, latency: seconds until a message arrives, within a node and between two
    """

    num_nodes: int
    devices_per_node: int
    peak: float
    utilization: float
    memory_bandwidth: float
    link_bandwidth: float
    link_latency: float
    bandwidth: float
    latency: float

    @property
    def num_devices(self) -> int:
        return self.num_nodes * self.devices_per_node


@dataclass(frozen=True)
class Work:
    """What a device does for one update.

    flops:             of all its micro-batches, forward and backward, and what is computed again
    num_weights, num_trained: of all weights, and of those that have gradients
    kept_bytes:        of what an update reads and writes beside the weights: the optimizer's moments, the weights' average
    compute_bytes, wire_bytes: of a number in the computation and on the wire
    num_shares:        into how many the optimizer's state is cut, a device each; 1 where each has it whole
    """

    flops: float
    num_micro_batches: int
    num_weights: int
    num_trained: int
    kept_bytes: int
    compute_bytes: int
    wire_bytes: int
    num_shares: int = 1


@dataclass(frozen=True)
class StepTime:
    """Seconds of an update, by what they go into. `accumulation` is what micro-batches cost beside their FLOPs."""

    compute: float
    accumulation: float
    reduction: float
    update: float

    @property
    def total(self) -> float:
        return self.compute + self.accumulation + self.reduction + self.update

    @property
    def efficiency(self) -> float:
        """Speed of a device over that of one alone with as many sequences, which reduces nothing."""
        return (self.total - self.reduction) / self.total


def step_time(work: Work, cluster: Cluster) -> StepTime:
    casts = 4 + work.compute_bytes if work.compute_bytes < 4 else 0
    accumulated = work.num_micro_batches * casts * work.num_weights
    accumulated += (work.num_micro_batches - 1) * ACCUMULATION_BYTES * work.num_trained
    updated = UPDATE_BYTES * work.num_trained / work.num_shares + 2 * work.kept_bytes
    if work.num_shares > 1:
        updated += GATHERED_BYTES * work.num_trained
    return StepTime(
        compute=work.flops / (cluster.peak * cluster.utilization),
        accumulation=accumulated / cluster.memory_bandwidth,
        reduction=_reduction(work, cluster),
        update=updated / cluster.memory_bandwidth,
    )


def _reduction(work: Work, cluster: Cluster) -> float:
    """Seconds on the wire, and of the casts before and after where it is narrower than the gradients."""
    if cluster.num_devices == 1:
        return 0.0
    casts = 2 * (4 + work.wire_bytes) * work.num_trained if work.wire_bytes < 4 else 0
    wire = all_reduce(work.wire_bytes * work.num_trained, cluster)
    if work.num_shares > 1:
        # Gradients are scattered as they are on the wire, weights gathered in float32: half of an all-reduce each.
        wire = (wire + all_reduce(4 * work.num_trained, cluster)) / 2
    return wire + casts / cluster.memory_bandwidth


def all_reduce(num_bytes: float, cluster: Cluster) -> float:
    """Seconds until every device has the sum of all: scattered within nodes, reduced between them, gathered within nodes.

    Each of a node's G devices reduces 1/G of the bytes over the nodes, all at once over what they share: together that is
    a ring of nodes for all bytes. A single ring through all devices sends as much over each node's network.
    """
    within = ring_all_reduce(num_bytes, cluster.devices_per_node, cluster.link_bandwidth, cluster.link_latency)
    return within + ring_all_reduce(num_bytes, cluster.num_nodes, cluster.bandwidth, cluster.latency)


def ring_all_reduce(num_bytes: float, num_ranks: int, bandwidth: float, latency: float) -> float:
    """2 (N-1) messages, one after another, of 1/N of the bytes each (Patarasuk and Yuan 2009, "Bandwidth optimal
    all-reduce algorithms for clusters of workstations"), which is what Horovod's ring does."""
    messages = 2 * (num_ranks - 1)
    return messages * (num_bytes / num_ranks / bandwidth + latency)
