"""Where measurements go: TensorBoard, `metrics.jsonl`, and the console."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

Values = Mapping[str, float]


class Writer(Protocol):
    """Takes what was measured at a step of the split `train` or `validation`."""

    def write(self, step: int, split: str, values: Values) -> None: ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """One run a split with the same names in both, so that each chart has a line for either.

    After a resume TensorBoard is told to forget what it holds of later steps.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self._files = {split: EventFileWriter(str(directory / split)) for split in ("train", "validation")}
        for file in self._files.values():
            file.add_event(Event(step=step + 1, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, split: str, values: Values) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._files[split].add_event(Event(step=step, wall_time=time.time(), summary=summary))
        self._files[split].flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class JsonLinesWriter:
    """A line for each step that is logged: step, split, and the values by their full names in SI units."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, step: int, split: str, values: Values) -> None:
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def close(self) -> None:
        self._file.close()


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
            logger.info("%s  validation loss %.4f  perplexity %.2f", place, values["loss"], values["perplexity"])
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

    def close(self) -> None:
        self._redirect.__exit__(None, None, None)
        self._bar.close()
