"""A plan as lines for a terminal, and under them what each number rests on."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.check import amount, describe_batches, find_sizes, memory_parts, tokens_of_row
from trainer.config import Config
from trainer.planning.assumptions import assume
from trainer.planning.cost import StepTime
from trainer.planning.hardware import CPU
from trainer.planning.plan import Choice, Plan, make_plan
from trainer.planning.request import Request


def planning_report(config: Config, request: Request) -> str:
    """Memory, time, speed and cost of the run, what bounds it, and the assumptions.

    Raises ConfigError where the cluster cannot run this configuration, DataError where the store is damaged.
    """
    sizes, origin, _ = find_sizes(config)
    plan = make_plan(config, assume(request, config), sizes)
    lines = [*_describe_run(plan), *_describe_memory(plan), *_describe_time(plan), ("bound by", bound_by(plan))]
    width = max(len(name) for name, _ in lines) + 2
    printed = [f"{name:<{width}}{text}" for name, text in lines]
    return "\n".join([*printed, "", *_describe_assumptions(plan, sizes.vocabulary_size, origin)])


def bound_by(plan: Plan) -> str:
    """What most of the update waits for; or that there is no update, and by how much."""
    if not plan.fits(plan.chosen):
        excess = plan.chosen.memory.total - plan.assumptions.memory
        return f"memory: it does not fit, by {amount(excess)}, with as little at once as there can be ({_setting(plan.chosen)})"
    time = plan.chosen.time
    shares = {
        "compute": time.compute,
        "the network": time.reduction,
        "the memory bandwidth of the update": time.accumulation + time.update,
    }
    name = max(shares, key=lambda each: shares[each])
    return f"{name}: {shares[name] / time.total:.1%} of the step"


def _describe_run(plan: Plan) -> Iterator[tuple[str, str]]:
    cluster, steps = plan.assumptions.cluster, plan.config.train.steps
    nodes = "1 node" if cluster.num_nodes == 1 else f"{cluster.num_nodes:,} nodes"
    device = plan.assumptions.accelerator
    yield "run", f"{plan.config.run.name}: {steps:,} steps on {nodes} of {cluster.devices_per_node} {device}"
    yield "parameters", f"{sum(each.num_elements for each in plan.weights.values()):,}"
    yield from describe_batches(plan.config, plan.chosen.batch)
    yield "chosen", f"{_setting(plan.chosen)}: {_reason(plan)}"


def _setting(choice: Choice) -> str:
    """As overrides that `drumline train` takes."""
    batch = choice.batch
    return f"train.micro_batch_size={batch.rows_per_micro_batch * batch.num_replicas} model.recompute={choice.recompute}"


def _reason(plan: Plan) -> str:
    """Why this choice and no other."""
    chosen = plan.chosen
    if not plan.fits(chosen):
        return "the smallest there is"
    larger = [
        each
        for each in plan.choices
        if each.recompute == chosen.recompute and each.batch.num_micro_batches < chosen.batch.num_micro_batches
    ]
    size = (
        f"{larger[-1].batch.rows_per_micro_batch:,} sequences at once would take {amount(larger[-1].memory.total)}"
        if larger
        else "all of a device's sequences at once"
    )
    if chosen.recompute == "none":
        return f"the fastest that fits; {size}"
    without = [each for each in plan.choices if each.recompute == "none"][-1]
    least = f"even one sequence at once would take {amount(without.memory.total)} without recomputation"
    if plan.fits(without):
        least = f"{without.time.total:.3g} s without recomputation"
    return f"the fastest that fits; {size}; {least}"


def _describe_memory(plan: Plan) -> Iterator[tuple[str, str]]:
    memory = plan.chosen.memory
    yield "memory", f"about {amount(memory.total)} of each device, of {amount(plan.assumptions.memory)} that may be used"
    for name, num_bytes in memory_parts(plan.config, memory).items():
        yield f"  {name}", amount(num_bytes)


def _describe_time(plan: Plan) -> Iterator[tuple[str, str]]:
    time, cluster, config = plan.chosen.time, plan.assumptions.cluster, plan.config
    yield "step", seconds(time.total)
    yield from _describe_parts(time)
    tokens = config.train.global_batch_size * tokens_of_row(config) / time.total
    yield "speed", f"{tokens:,.0f} tokens/s, {tokens / cluster.num_devices:,.0f} on each device"
    yield "efficiency", f"{time.efficiency:.1%} of what as many devices would do that reduce nothing"
    total = config.train.steps * time.total
    hours = total / 3600 * cluster.num_devices
    unit = "CPU-hours" if plan.assumptions.accelerator == CPU else "GPU-hours"
    price = plan.assumptions.price
    cost = "" if price is None else f", which cost {hours * price:,.2f}"
    yield "in all", f"{total / 86_400:,.3g} days, {hours:,.4g} {unit}{cost}"


def _describe_parts(time: StepTime) -> Iterator[tuple[str, str]]:
    parts = {
        "compute": time.compute,
        "micro-batches": time.accumulation,
        "reduction": time.reduction,
        "update": time.update,
    }
    for name, part in parts.items():
        yield f"  {name}", f"{seconds(part):<9} {part / time.total:6.1%}"


def seconds(time: float) -> str:
    """Seconds in a unit that leaves one to four digits."""
    if time >= 1:
        return f"{time:,.4g} s"
    return f"{time * 1e3:,.3g} ms"


def _describe_assumptions(plan: Plan, vocabulary_size: int, origin: str) -> Iterator[str]:
    yield "What this rests on, and what changes it (docs/scaling.md has the formulas):"
    lines = [
        *plan.assumptions.lines,
        ("train.precision", plan.config.train.precision, "of the computation; weights, gradients and moments are float32"),
        ("distribution.wire_precision", plan.config.distribution.wire_precision, "of gradients between devices, reduced once"),
        ("data.tokenizer", f"{vocabulary_size:,}", f"tokens, {origin}"),
    ]
    names, values = (max(len(line[column]) for line in lines) for column in (0, 1))
    for name, value, meaning in lines:
        yield f"  {name:<{names}}  {value:<{values}}  {meaning}"
    yield "  No part of a step is overlapped with another; evaluations, checkpoints, restarts, waiting for data and slower"
    yield "  devices among the others are not counted, nor is that small micro-batches reach less of the peak."
