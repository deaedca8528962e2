"""Where measurements go: TensorBoard, `metrics.jsonl`, and the console."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer.config import METRICS
from trainer.line_file import LineFile
from trainer.monitor.event_file import EventFile
from trainer.run_directory import cut_back

logger = logging.getLogger(__name__)

Values = Mapping[str, float]


class Writer(Protocol):
    """Takes what was measured at a step of the split `train` or `validation`; forgets what came after a step."""

    def write(self, step: int, split: str, values: Values) -> None: ...

    def go_back(self, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """One run a split with the same names in both, so that each chart has a line for either.

    After a resume TensorBoard is told to forget what it holds of later steps. Where the disk is full, what cannot be
    written is left out: the same is in `metrics.jsonl`, which tries again.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self._directory = directory
        self._files: dict[str, EventFile] = {}
        self._is_failing = False
        self.go_back(step)

    def write(self, step: int, split: str, values: Values) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._add(split, Event(step=step, wall_time=time.time(), summary=summary))

    def go_back(self, step: int) -> None:
        for split in ("train", "validation"):
            self._add(split, Event(step=step + 1, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        for split in list(self._files):
            self._give_up(split)

    def _add(self, split: str, event: Event) -> None:
        try:
            if split not in self._files:
                self._files[split] = EventFile(self._directory / split)
            self._files[split].add(event)
        except OSError as error:
            if not self._is_failing:
                logger.warning("%s cannot be written: %s; charts have a gap, training goes on", self._directory / split, error)
            self._give_up(split)  # it may end with a part of an event: the next one begins another file
            self._is_failing = True
        else:
            self._is_failing = False

    def _give_up(self, split: str) -> None:
        file = self._files.pop(split, None)
        if file is not None:
            try:
                file.close()
            except OSError as error:
                logger.debug("%s: %s", self._directory / split, error)  # told when it was written


class JsonLinesWriter:
    """A line for each step that is logged: step, split, and the values by their full names in SI units."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = LineFile(path)

    def write(self, step: int, split: str, values: Values) -> None:
        # JSON has no name for what is not a number.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.append({"step": step, "split": split, **finite})

    def go_back(self, step: int) -> None:
        self._file.close()
        cut_back(self._path, step)
        self._file = LineFile(self._path)

    def close(self) -> None:
        self._file.close()


ALL_METRICS = {name for names in METRICS.values() for name in names} | {"epsilon"}


class ConsoleWriter:
    """Aligned lines in a log; a progress bar with the same lines above it on a terminal."""

    def __init__(self, num_steps: int, step: int) -> None:
        self._num_steps = num_steps
        self._bar = tqdm(total=num_steps, initial=step, unit="step", disable=not sys.stderr.isatty(), leave=False)
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()

    def write(self, step: int, split: str, values: Values) -> None:
        place = f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}"
        if split == "validation":
            told = ("loss", *(name for name in values if name in ALL_METRICS and name != "loss"))
            logger.info("%s  validation %s", place, "  ".join(f"{name} {values[name]:.4f}" for name in told))
            return
        self._bar.update(step - self._bar.n)
        logger.info(
            "%s  loss %7.4f  rate %.2e  norm %6.3f  %8.0f tokens/s  %6.1f ms/step  %4.1f%% of peak  data wait %4.1f%%",
            place,
            values["loss"],
            values["learning_rate"],
            values["gradient_norm"],
            values["tokens_per_second"],
            1e3 * values["step_seconds"],
            1e2 * values["model_flops_utilization"],
            1e2 * values["data_wait_seconds"] / values["step_seconds"],
        )

    def go_back(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._redirect.__exit__(None, None, None)
        self._bar.close()
