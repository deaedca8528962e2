"""The sections that say how a run is carried out: where it lives, how replicas work together, what is saved and watched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Count, Section, complaint

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class RunConfig(Section):
    """What the run is called and where it lives: everything it writes goes to `directory/name`."""

    name: Annotated[str, Field(pattern=RUN_NAME)]
    directory: Annotated[str, Field(min_length=1)] = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1


class DistributionConfig(Section):
    """How replicas work together. `num_replicas` is for `mirrored` alone: how many devices (default: all GPUs).

    `shared_memory` is for Horovod's ranks on the CPUs of one machine: without it they send over Gloo.
    """

    backend: Literal["auto", "single", "mirrored", "multiworker", "horovod"] = "auto"
    num_replicas: Count | None = None
    wire_precision: Literal["float32", "float16"] = "float32"
    shared_memory: bool = True
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 300.0

    @model_validator(mode="after")
    def _replicas_only_mirrored(self) -> DistributionConfig:
        if self.num_replicas is not None and self.backend != "mirrored":
            raise complaint(
                "num_replicas",
                f"{self.num_replicas}",
                f"nothing with backend {self.backend}: there the launcher decides",
            )
        return self


class EvaluationConfig(Section):
    """Validation, every so many steps and at the end, over the first `batches` batches of a fixed order (null: all).

    Metrics of generated texts (BLEU, ROUGE) take long: they are computed over the first `generate` samples.
    """

    every: Count | None = 200
    batches: Count | None = 20
    generate: Annotated[int, Field(ge=0)] = 0


class CheckpointConfig(Section):
    """A checkpoint every so many steps and at the end, written while training goes on where `background` is true.

    `directory` is a path, or a URL of any file system that fsspec knows; by default the run's folder `checkpoints`. What
    stays: the newest `keep_last`, every one whose step is a multiple of `keep_every`, and the `keep_best` of the best
    `best_metric`, which is any that the task's evaluation has. When `max_failures` saves in a row have failed, the run ends.
    """

    directory: Annotated[str, Field(min_length=1)] | None = None
    every: Count = 200
    keep_last: Count = 3
    keep_every: Count | None = None
    keep_best: Annotated[int, Field(ge=0)] = 1
    best_metric: str = "loss"
    background: bool = True
    max_failures: Count = 3


class DivergenceConfig(Section):
    """When training no longer leads anywhere, and what is done then.

    An update whose loss or gradient is not finite is skipped. More than `max_skipped_in_a_row` of these, or a loss that is
    higher than the median of the last `spike_window` losses by more than `spike_deviations` robust standard deviations
    (1.4826 times their median absolute deviation; null: any loss will do), roll the run back to its last good checkpoint
    and step over the samples in between, at most `max_rollbacks` times.
    """

    max_skipped_in_a_row: Annotated[int, Field(ge=0)] = 3
    spike_deviations: Annotated[float, Field(gt=0.0)] | None = None
    spike_window: Annotated[int, Field(ge=8)] = 64
    max_rollbacks: Annotated[int, Field(ge=0)] = 3


class WatchdogConfig(Section):
    """When a run that makes no progress is given up.

    A call of TensorFlow may take `times_expected` times as long as was measured before, and `least_seconds` at least. What
    comes first of its kind (joining the others, the first collective, compiling) may take `startup_seconds`. A process that
    was not heard of for `silence_seconds` counts as stopped or cut off.
    """

    enabled: bool = True
    times_expected: Annotated[float, Field(gt=1.0)] = 20.0
    least_seconds: Annotated[float, Field(gt=0.0)] = 120.0
    startup_seconds: Annotated[float, Field(gt=0.0)] = 1800.0
    silence_seconds: Annotated[float, Field(ge=3.0)] = 20.0


class LoggingConfig(Section):
    """A line in `metrics.jsonl`, TensorBoard and on the console every so many steps."""

    every: Count = 10
