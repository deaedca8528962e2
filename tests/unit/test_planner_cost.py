"""The planner's arithmetic, by hand: the ring, what a step takes, and what devices can do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.planning.cost import Cluster, StepTime, Work, all_reduce, ring_all_reduce, step_time
from trainer.planning.hardware import ACCELERATORS, accelerator_of

CLUSTER = Cluster(
    num_nodes=2,
    devices_per_node=8,
    peak=100e12,
    utilization=0.5,
    memory_bandwidth=1e12,
    link_bandwidth=100e9,
    link_latency=0.0,
    bandwidth=10e9,
    latency=0.0,
)
WORK = Work(
    flops=50e12, num_micro_batches=1, num_weights=10**9, num_trained=10**9, kept_bytes=8 * 10**9, compute_bytes=4, wire_bytes=4
)


@pytest.mark.parametrize(
    ("num_ranks", "seconds"),
    [
        (1, 0.0),
        # Two messages of half of 8 GB at 1 GB/s, and twice 0.25 s.
        (2, 2 * 4.0 + 2 * 0.25),
        # Thirty messages of a sixteenth.
        (16, 30 * 0.5 + 30 * 0.25),
    ],
)
def test_a_ring_sends_twice_all_but_one_part(num_ranks: int, seconds: float) -> None:
    assert ring_all_reduce(8e9, num_ranks, 1e9, 0.25) == pytest.approx(seconds)


def test_nodes_share_their_network_and_reduce_within_first() -> None:
    # 8 GB: within the node 2 x 7/8 of them at 100 GB/s, between two nodes 2 x 1/2 of them at 10 GB/s.
    assert all_reduce(8e9, CLUSTER) == pytest.approx(14 / 100 + 8 / 10)


def test_doubling_the_bandwidth_halves_what_bandwidth_takes() -> None:
    one_a_node = replace(CLUSTER, devices_per_node=1, num_nodes=16)
    assert all_reduce(8e9, replace(one_a_node, bandwidth=20e9)) == pytest.approx(all_reduce(8e9, one_a_node) / 2)


def test_latency_is_paid_for_every_message() -> None:
    late = replace(CLUSTER, link_latency=1e-3, latency=1e-2)
    assert all_reduce(8e9, late) - all_reduce(8e9, CLUSTER) == pytest.approx(14 * 1e-3 + 2 * 1e-2)


def test_a_step_adds_up_by_hand() -> None:
    # 4 GB of gradients on the wire; AdamW moves 32 bytes a number.
    assert step_time(WORK, CLUSTER) == StepTime(
        compute=pytest.approx(1.0), accumulation=0.0, reduction=pytest.approx(0.07 + 0.4), update=pytest.approx(0.032)
    )


def test_one_device_reduces_nothing() -> None:
    alone = step_time(WORK, replace(CLUSTER, num_nodes=1, devices_per_node=1))
    assert alone.reduction == 0.0
    assert alone.efficiency == 1.0


def test_micro_batches_cost_the_sum_of_gradients_and_casts_of_weights() -> None:
    # Four casts from 4 to 2 bytes, three sums of which 12 bytes a number are moved.
    work = replace(WORK, num_micro_batches=4, compute_bytes=2)
    assert step_time(work, CLUSTER).accumulation == pytest.approx((4 * 6 + 3 * 12) * 1e-3)


def test_a_float16_wire_halves_the_bytes_and_costs_two_casts() -> None:
    narrow, wide = (step_time(replace(WORK, wire_bytes=size), CLUSTER).reduction for size in (2, 4))
    assert narrow == pytest.approx(wide / 2 + 12e-3)


def test_a_sharded_optimizer_updates_its_share_and_gathers_the_weights_in_float32() -> None:
    shared = replace(WORK, kept_bytes=WORK.kept_bytes // 16, wire_bytes=2, num_shares=16)
    found = step_time(shared, CLUSTER)
    # Of 32 bytes a number a 16th, and 8 of each to gather; half a reduction of 2 GB and half of one of 4, and the casts.
    assert found.update == pytest.approx(0.032 / 16 + 0.008)
    assert found.reduction == pytest.approx(0.75 * (0.07 + 0.4) + 0.012)


def test_efficiency_falls_with_slower_networks_and_never_exceeds_one() -> None:
    efficiencies = [step_time(WORK, replace(CLUSTER, bandwidth=rate)).efficiency for rate in (1e12, 1e11, 1e10, 1e9)]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert 0 < efficiencies[-1] < efficiencies[0] < 1


def test_utilization_and_peak_scale_the_computation_alone() -> None:
    usual, faster = step_time(WORK, CLUSTER), step_time(WORK, replace(CLUSTER, utilization=1.0))
    assert faster == replace(usual, compute=usual.compute / 2)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla T4", "t4"),
    ],
)
def test_devices_are_known_by_the_longest_name(name: str, known: str) -> None:
    assert accelerator_of(name) is ACCELERATORS[known]


def test_a_device_that_is_not_in_the_table_is_not_guessed() -> None:
    assert accelerator_of("Quadro K620") is None


def test_every_device_has_figures_that_are_possible() -> None:
    for name, each in ACCELERATORS.items():
        assert 16e9 <= each.memory < 1e12, name
        assert 1e12 < each.single < each.half < 1e16, name
        assert 1e11 < each.memory_bandwidth < 1e14, name
        assert 1e10 < each.link_bandwidth < each.memory_bandwidth, name
        assert each.link in ("NVLink", "PCIe") and each.source, name
        assert (each.peak("bfloat16") is None) == (not each.has_bfloat16), name
