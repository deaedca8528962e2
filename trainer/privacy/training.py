"""What training with `privacy` has beside other training: its budget, its samples, its noise; and how they are begun."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

from trainer.config import BatchPlan, Config
from trainer.data.corpus import Corpus
from trainer.data.poisson_order import PoissonOrder
from trainer.errors import CheckpointError
from trainer.privacy.budget import Budget, plan_budget, sample_capacity
from trainer.privacy.gradients import Noise
from trainer.progress import PrivacyRecord, Progress

logger = logging.getLogger(__name__)

_SECRET_BYTES = 16


@dataclass(frozen=True)
class PrivateTraining:
    budget: Budget
    order: PoissonOrder
    noise: Noise

    def num_updates(self, progress: Progress) -> int:
        """That were ever made, with those that were rolled back."""
        return progress.num_samples // self.order.capacity

    def epsilon(self, progress: Progress) -> float:
        """What is spent."""
        return self.budget.epsilon(self.num_updates(progress))

    def limited(self, config: Config) -> Config:
        """The configuration of a run that ends, and has lowered its learning rate, when the budget is spent."""
        steps = self.budget.most_updates(config.train.steps)
        return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})

    def last_step(self, config: Config, progress: Progress) -> int:
        """Where the run ends: at `train.steps`, or before it where updates that were rolled back have spent of the budget."""
        lost = self.num_updates(progress) - progress.step
        return self.budget.most_updates(config.train.steps + lost) - lost if lost else config.train.steps

    def announce(self, config: Config) -> None:
        """Tells what the run is going to spend; `config` is limited already."""
        privacy, budget = self.budget.config, self.budget
        logger.info(
            "privacy: updates take each of %s samples with probability %.3g, clip gradients to %g, add noise of %g times it",
            *(f"{self.order.num_samples:,}", budget.sampling_rate, privacy.clip_norm, budget.noise_multiplier),
        )
        spent = budget.epsilon(config.train.steps)
        logger.info("privacy: %d updates spend epsilon %.3f at delta %g", config.train.steps, spent, privacy.delta)


def begin_privacy(config: Config, corpus: Corpus) -> PrivacyRecord | None:
    """What a new run keeps in its checkpoints; None without `privacy`."""
    if config.privacy is None:
        return None
    given = config.privacy.seed
    secret = secrets.token_bytes(_SECRET_BYTES) if given is None else given.to_bytes(_SECRET_BYTES, "little")
    budget = plan_budget(config, corpus.order.num_samples, None)
    return PrivacyRecord(secret.hex(), budget.noise_multiplier, budget.sampling_rate)


def num_rows(config: Config, corpus: Corpus) -> int | None:
    """How many rows an update needs to hold its sample; None without `privacy`, where it has `train.global_batch_size`."""
    if config.privacy is None:
        return None
    num_samples = corpus.order.num_samples
    return sample_capacity(config.privacy, min(1.0, config.train.global_batch_size / num_samples), num_samples)


def open_privacy(config: Config, corpus: Corpus, plan: BatchPlan, progress: Progress) -> PrivateTraining | None:
    """Of a run that stands at `progress`; None without `privacy`. Raises UserError where it was begun without, or its budget
    was reckoned for something else."""
    privacy, record = config.privacy, progress.privacy
    if privacy is None:
        if record is not None:
            raise CheckpointError("privacy: the run was begun with it, and now has none; take another run.name")
        return None
    if record is None:
        raise CheckpointError(
            "privacy: the run was begun without it, and what it learned is not private; take another run.name"
        )
    budget = plan_budget(config, corpus.order.num_samples, record)
    secret = record.secret_bytes
    order = PoissonOrder.of(corpus.order, record, plan.global_batch_size)
    halves = (int.from_bytes(secret[:8], "little", signed=True), int.from_bytes(secret[8:], "little", signed=True))
    return PrivateTraining(budget, order, Noise(halves, budget.noise_multiplier * privacy.clip_norm))
