"""Turns what an inner loop returned into lines: rates, utilisation, memory; on the chief alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np

from trainer.config import Config
from trainer.evaluate import Result
from trainer.monitor.throughput import peak_flops_per_second, peak_memory_bytes
from trainer.monitor.writers import ConsoleWriter, JsonLinesWriter, TensorBoardWriter, Writer
from trainer.run_directory import RunDirectory
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_flops_per_token

logger = logging.getLogger(__name__)


class Monitor:
    """Writes the steps that are to be logged: the first, the last, and every `logging.every`."""

    def __init__(self, config: Config, sizes: Sizes, num_devices: int, writers: Sequence[Writer], num_lanes: int = 1) -> None:
        self._config = config
        self._writers = writers
        self._flops_per_token = run_flops_per_token(config, sizes)
        peak, self.peak_source = peak_flops_per_second(config.train.precision, num_lanes) if writers else (math.inf, "")
        self.peak_flops_per_second = peak * num_devices
        self._num_skipped = 0

    @classmethod
    def of_run(
        cls, config: Config, sizes: Sizes, num_devices: int, run: RunDirectory, step: int, num_lanes: int = 1
    ) -> Monitor:
        """The chief's: to TensorBoard, `metrics.jsonl` and the console."""
        writers = (
            TensorBoardWriter(run.tensorboard, step),
            JsonLinesWriter(run.metrics),
            ConsoleWriter(config.train.steps, step),
        )
        return cls(config, sizes, num_devices, writers, num_lanes)

    def is_logged(self, step: int) -> bool:
        return step == 1 or step == self._config.train.steps or step % self._config.logging.every == 0

    def write_steps(self, first_step: int, history: Mapping[str, np.ndarray], seconds: float) -> None:
        """Of the steps after `first_step`, which took `seconds` together, writes those that are to be logged."""
        if not self._writers:
            return
        num_steps = len(history["loss"])
        tokens_per_second = float(history["num_tokens"].sum()) / seconds
        shared = {
            "tokens_per_second": tokens_per_second,
            "step_seconds": seconds / num_steps,
            "model_flops_utilization": tokens_per_second * self._flops_per_token / self.peak_flops_per_second,
            "peak_memory_bytes": float(peak_memory_bytes()),
        }
        names = ["loss", "learning_rate", "gradient_norm", "num_tokens", "data_wait_seconds"]
        if self._config.train.precision == "float16":
            names.append("loss_scale")
        for index in range(num_steps):
            step = first_step + index + 1
            if history["is_skipped"][index]:
                logger.warning(
                    "step %d: loss %g, gradient norm %g: the update is skipped on all replicas",
                    step,
                    history["loss"][index],
                    history["gradient_norm"][index],
                )
            self._num_skipped += int(history["is_skipped"][index])
            if self.is_logged(step):
                values = {name: float(history[name][index]) for name in names}
                values["skipped_updates"] = float(self._num_skipped)
                self._write(step, "train", values | shared)

    def go_back(self, step: int) -> None:
        """Takes back what was written of later steps: the run goes on from here."""
        for writer in self._writers:
            writer.go_back(step)

    def write_validation(self, step: int, result: Result) -> None:
        values = {
            **result.metrics,
            result.counted: float(result.num_counted),
            "evaluation_seconds": result.seconds,
        }
        self._write(step, "validation", values)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._writers:
            writer.close()

    def _write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, values)
