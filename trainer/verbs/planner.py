"""The options of `check` that ask for a plan, and which of them belong together."""

from __future__ import annotations

import argparse

from launch.cli import positive
from trainer.arguments import probability
from trainer.errors import UserError
from trainer.planning.hardware import ACCELERATORS, CPU
from trainer.planning.request import Request, amount_of_memory, bandwidth, duration, price, rate


def add_planner_options(parser: argparse.ArgumentParser) -> None:
    """The planner's; each is None where it is not given."""
    group = parser.add_argument_group("planner", "with --gpu: what the run would take on devices that need not be here")
    group.add_argument("--gpu", metavar="NAME", choices=[*ACCELERATORS, CPU], help=f"{', '.join(ACCELERATORS)}, or {CPU}")
    group.add_argument("--nodes", type=positive, metavar="N", help="equal machines (default: 1)")
    group.add_argument("--gpus-per-node", type=positive, metavar="N", help="devices of each (default: 1)")
    group.add_argument("--bandwidth", type=bandwidth, metavar="RATE", help="of a node to others, one way: 400Gb/s, 50GB/s")
    group.add_argument("--latency", type=duration, metavar="TIME", help="of a message between nodes (default: 14us)")
    group.add_argument("--link-bandwidth", type=bandwidth, metavar="RATE", help="of a device to others of its node, one way")
    group.add_argument("--link-latency", type=duration, metavar="TIME", help="of a message within a node (default: by link)")
    group.add_argument("--utilization", type=probability, metavar="SHARE", help="of the peak (default: 0.35; float32: 0.4)")
    group.add_argument("--flops", dest="peak", type=rate, metavar="RATE", help="peak of a device, such as 989TFLOP/s")
    group.add_argument("--memory", type=amount_of_memory, metavar="AMOUNT", help="of a device, such as 80GB")
    group.add_argument("--memory-bandwidth", type=bandwidth, metavar="RATE", help="of a device's memory")
    group.add_argument("--memory-share", type=probability, metavar="SHARE", help="of memory that may be used (default: 0.8)")
    group.add_argument("--price", type=price, metavar="NUMBER", help="of a device for an hour, in any currency")


def requested(arguments: argparse.Namespace) -> Request | None:
    """The cluster that is planned for; None where nothing is. Raises UserError where options do not fit."""
    given = {
        "--nodes": arguments.nodes,
        "--gpus-per-node": arguments.gpus_per_node,
        "--bandwidth": arguments.bandwidth,
        "--latency": arguments.latency,
        "--link-bandwidth": arguments.link_bandwidth,
        "--link-latency": arguments.link_latency,
        "--utilization": arguments.utilization,
        "--flops": arguments.peak,
        "--memory": arguments.memory,
        "--memory-bandwidth": arguments.memory_bandwidth,
        "--memory-share": arguments.memory_share,
        "--price": arguments.price,
    }
    there = {name for name, value in given.items() if value is not None}
    if arguments.gpu is None:
        if there:
            raise UserError(f"{min(there)}: got it without --gpu; add --gpu NAME, which says what device is planned for")
        return None
    if arguments.replicas is not None:
        raise UserError("--replicas: got it with --gpu, where there are --nodes times --gpus-per-node; leave it out")
    num_nodes, devices_per_node = arguments.nodes or 1, arguments.gpus_per_node or 1
    _refuse_what_does_not_belong(there, num_nodes, devices_per_node)
    if arguments.gpu == CPU:
        _demand_figures(there, devices_per_node)
    return Request(
        accelerator=arguments.gpu,
        num_nodes=num_nodes,
        devices_per_node=devices_per_node,
        bandwidth=arguments.bandwidth,
        latency=arguments.latency,
        link_bandwidth=arguments.link_bandwidth,
        link_latency=arguments.link_latency,
        utilization=arguments.utilization,
        peak=arguments.peak,
        memory=arguments.memory,
        memory_bandwidth=arguments.memory_bandwidth,
        memory_share=arguments.memory_share,
        price=arguments.price,
    )


def _refuse_what_does_not_belong(there: set[str], num_nodes: int, devices_per_node: int) -> None:
    for names, number, got, needed in (
        (("--bandwidth", "--latency"), num_nodes, "1 node", "--nodes"),
        (("--link-bandwidth", "--link-latency"), devices_per_node, "1 device a node", "--gpus-per-node"),
    ):
        for name in names:
            if number == 1 and name in there:
                raise UserError(f"{name}: got it with {got}, where nothing is sent; leave it out, or set {needed}")
    if num_nodes > 1 and "--bandwidth" not in there:
        raise UserError(f"--bandwidth: got none for {num_nodes} nodes; expected that of a node to others, such as 400Gb/s")


def _demand_figures(there: set[str], devices_per_node: int) -> None:
    """Of a CPU nothing is in the table."""
    wanted = ["--flops", "--utilization", "--memory", "--memory-bandwidth"]
    wanted += ["--link-bandwidth", "--link-latency"] if devices_per_node > 1 else []
    if missing := [name for name in wanted if name not in there]:
        raise UserError(f"--gpu: got cpu, of which no figures are known; give {', '.join(missing)} too")
