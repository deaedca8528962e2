"""The folder of a run: what lies where in it, and what is written before the first step."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.config_io import dump_config, load_config
from trainer.errors import CheckpointError
from trainer.files import json_bytes, write_atomically

logger = logging.getLogger(__name__)


class RunDirectory:
    """`directory/name` of the configuration. Making one touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "run.json"
        self.tokenizer = path / "tokenizer.json"
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"

    def begin(
        self, config: Config, tokenizer: Path, step: int, command_line: Sequence[str], surroundings: dict[str, Any]
    ) -> None:
        """Writes the resolved configuration, the tokenizer and an account of this start, and takes back what metrics and ledger
        tell of steps that were lost after `step`."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.tensorboard.mkdir(exist_ok=True)
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
        for path in (self.metrics, self.ledger):
            _cut_back(path, step)


def open_run(path: Path) -> tuple[RunDirectory, Config]:
    """A run that has been started, with its configuration. Raises CheckpointError where there is none."""
    run = RunDirectory(path)
    if not run.config.is_file():
        raise CheckpointError(
            f"{path}: not a run ({run.config.name} is missing); expected a folder that `drumline train` wrote"
        )
    return run, load_config(run.config)


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


def _cut_back(path: Path, step: int) -> None:
    """Drops the lines after `step`, and a last line that a kill left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except ValueError:
            logger.warning("%s: dropped an unfinished line", path)
            continue
        kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())
