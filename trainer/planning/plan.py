"""The micro-batch and the recomputation that fit into a device's memory and make the update fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trainer.check import PRECISION_BYTES, Memory, estimate_memory, tokens_of_row
from trainer.config import BatchPlan, Config, plan_batches
from trainer.models.parameters import Parameter, flops_per_token
from trainer.planning.assumptions import Assumptions
from trainer.planning.cost import StepTime, Work, step_time
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_flops_per_token, run_parameters

Recompute = Literal["none", "blocks"]


@dataclass(frozen=True)
class Choice:
    """One way to divide a device's share of the update, with what it takes of memory and time."""

    batch: BatchPlan
    recompute: Recompute
    memory: Memory
    time: StepTime


@dataclass(frozen=True)
class Plan:
    """chosen:   the fastest choice that fits; the smallest one where none does
    choices:  all there are, those without recomputation first, larger micro-batches first
    """

    config: Config
    assumptions: Assumptions
    weights: dict[str, Parameter]
    chosen: Choice
    choices: tuple[Choice, ...]

    def fits(self, choice: Choice) -> bool:
        return choice.memory.total <= self.assumptions.memory


def make_plan(config: Config, assumptions: Assumptions, sizes: Sizes) -> Plan:
    """Raises ConfigError where the batch does not divide over the devices."""
    weights = run_parameters(config, sizes)
    choices = tuple(_choices(config, assumptions, sizes, weights))
    fitting = [each for each in choices if each.memory.total <= assumptions.memory]
    fastest = min(fitting, key=lambda each: each.time.total, default=None)
    chosen = fastest or min(choices, key=lambda each: each.memory.total)
    return Plan(config, assumptions, weights, chosen, choices)


def _choices(config: Config, assumptions: Assumptions, sizes: Sizes, weights: dict[str, Parameter]) -> Iterator[Choice]:
    num_replicas = assumptions.cluster.num_devices
    whole = plan_batches(config.train.model_copy(update={"micro_batch_size": None}), num_replicas)
    divisors = [rows for rows in range(whole.rows_per_replica, 0, -1) if whole.rows_per_replica % rows == 0]
    settings: tuple[Recompute, ...] = ("none",) if config.model.family == "bag_of_embeddings" else ("none", "blocks")
    for recompute in settings:
        chosen = config.model_copy(update={"model": config.model.model_copy(update={"recompute": recompute})})
        for rows in divisors:
            train = config.train.model_copy(update={"micro_batch_size": rows * num_replicas})
            batch = plan_batches(train, num_replicas)
            memory = estimate_memory(chosen, batch, weights, sizes.vocabulary_size)
            work = _work(chosen, batch, sizes, weights, memory.moments + memory.average)
            yield Choice(batch, recompute, memory, step_time(work, assumptions.cluster))


def _work(config: Config, batch: BatchPlan, sizes: Sizes, weights: dict[str, Parameter], kept_bytes: int) -> Work:
    """Six FLOPs for each weight that a token is multiplied with, as `trainer.models.parameters` counts them, also where
    weights are frozen (which is more than there are); recomputation adds the layers' two."""
    flops = run_flops_per_token(config, sizes)
    if config.model.recompute == "blocks":
        length, targets = config.data.sequence_length, config.target_length
        flops += flops_per_token(config.model, sizes.vocabulary_size, length, targets, scores_tokens=False) // 3
    num_tokens = batch.rows_per_replica * tokens_of_row(config) * (2 if config.data.augmentation.mixup else 1)
    return Work(
        flops=flops * num_tokens,
        num_micro_batches=batch.num_micro_batches,
        num_weights=sum(each.num_elements for each in weights.values()),
        num_trained=sum(each.num_elements for each in weights.values() if each.is_trainable),
        kept_bytes=kept_bytes,
        compute_bytes=PRECISION_BYTES[config.train.precision],
        wire_bytes=PRECISION_BYTES[config.distribution.wire_precision],
        num_shares=batch.num_replicas if config.train.shard_optimizer else 1,
    )
