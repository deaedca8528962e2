"""The folder of a run: what lies where in it, and what is written before the first step."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.config_io import dump_config, load_config
from trainer.errors import CheckpointError
from trainer.files import json_bytes, write_atomically
from trainer.location import open_location

logger = logging.getLogger(__name__)


class RunDirectory:
    """What is written where. Making one touches nothing on disk."""

    def __init__(self, path: Path, checkpoints: str | None = None) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "run.json"
        self.tokenizer = path / "tokenizer.json"
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints" if checkpoints is None else open_location(checkpoints)

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        return cls(Path(config.run.directory) / config.run.name, config.checkpoint.directory)

    def begin(
        self, config: Config, tokenizer: Path, step: int, command_line: Sequence[str], surroundings: dict[str, Any]
    ) -> None:
        """Writes the resolved configuration, the tokenizer and an account of this start, and takes back what the metrics
        tell of steps that were lost after `step`. Raises CheckpointError where it cannot be written."""
        try:
            self._begin(config, tokenizer, step, command_line, surroundings)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written: {error}; make room, or take another run.directory"
            ) from error

    def _begin(
        self, config: Config, tokenizer: Path, step: int, command_line: Sequence[str], surroundings: dict[str, Any]
    ) -> None:
        self.tensorboard.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, dump_config(config).encode())
        write_atomically(self.tokenizer, tokenizer.read_bytes())
        starts = json.loads(self.history.read_text())["starts"] if self.history.exists() else []
        start = {
            "started": time.time(),
            "step": step,
            "command_line": list(command_line),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "versions": versions(),
            **surroundings,
        }
        write_atomically(self.history, json_bytes({"name": config.run.name, "starts": [*starts, start]}))
        cut_back(self.metrics, step)


def open_run(path: Path) -> tuple[RunDirectory, Config]:
    """A run that has been started, with its configuration. Raises CheckpointError where there is none."""
    written = RunDirectory(path).config
    if not written.is_file():
        raise CheckpointError(f"{path}: not a run ({written.name} is missing); expected a folder that `drumline train` wrote")
    config = load_config(written)
    return RunDirectory(path, config.checkpoint.directory), config


def versions() -> dict[str, str]:
    """What computed: the interpreter and the packages that matter."""
    packages = ("drumline", "tensorflow", "keras", "numpy", "tokenizers", "horovod")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def training_lines(metrics: Path) -> Iterator[dict[str, Any]]:
    """The logged steps that `metrics.jsonl` has, in order."""
    return (line for line in _whole_lines(metrics) if line["split"] == "train")


def validation_lines(metrics: Path) -> Iterator[dict[str, Any]]:
    """The evaluations that `metrics.jsonl` has, in order."""
    return (line for line in _whole_lines(metrics) if line["split"] == "validation")


def has_validation(metrics: Path, step: int) -> bool:
    """Whether `metrics.jsonl` has an evaluation of this step."""
    return any(line["step"] == step for line in validation_lines(metrics))


def cut_back(path: Path, step: int) -> None:
    """Drops the lines after `step`."""
    if path.exists():
        kept = [line for line in _whole_lines(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, without a last one that a kill left unfinished."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning("%s: passed over an unfinished line", path)
