"""How an update's sequences fall on replicas and micro-batches: arithmetic that follows from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config.training import TrainConfig
from trainer.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """How one update's `global_batch_size` sequences fall on replicas and micro-batches.

    Replica r takes the rows `r * rows_per_replica ...` of the update, in `num_micro_batches` parts of `rows_per_micro_batch`.
    """

    global_batch_size: int
    num_replicas: int
    num_micro_batches: int
    rows_per_micro_batch: int

    @property
    def rows_per_replica(self) -> int:
        return self.num_micro_batches * self.rows_per_micro_batch

    def first_rows(self, replica: int) -> Iterator[int]:
        """The global row at which each of a replica's micro-batches begins."""
        for micro_batch in range(self.num_micro_batches):
            yield replica * self.rows_per_replica + micro_batch * self.rows_per_micro_batch


def plan_batches(train: TrainConfig, num_replicas: int, num_rows: int | None = None) -> BatchPlan:
    """Divides the batch over `num_replicas`; raises ConfigError where it does not divide.

    With `num_rows`, since not every update has `train.global_batch_size` sequences, into as many micro-batches as hold so many.
    """
    micro_batch_size = train.micro_batch_size or train.global_batch_size
    key = "micro_batch_size" if train.micro_batch_size else "global_batch_size"
    if micro_batch_size % num_replicas:
        below = micro_batch_size - micro_batch_size % num_replicas
        choices = " or ".join(str(size) for size in (below, below + num_replicas) if size)
        raise ConfigError(
            f"train.{key}: got {micro_batch_size}, expected a multiple of the number of replicas, which is {num_replicas}; "
            f"batch sizes are global: take {choices}, or another number of replicas"
        )
    num_micro_batches = -(-(num_rows or train.global_batch_size) // micro_batch_size)
    return BatchPlan(
        global_batch_size=num_micro_batches * micro_batch_size,
        num_replicas=num_replicas,
        num_micro_batches=num_micro_batches,
        rows_per_micro_batch=micro_batch_size // num_replicas,
    )
