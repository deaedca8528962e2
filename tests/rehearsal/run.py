"""The run that is rehearsed: a small model on English text, its configuration, manifests, and what it has to come to."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.training import BIN, environment, largest_difference, ledger_hash, train_losses, write_texts

NAME = "band"
STEPS = 150
CONFIG = f"""\
run: {{name: {NAME}, directory: runs, seed: 7}}
data:
  store: data/store
  format: lines
  train: [{{path: data/train.txt}}]
  validation: [{{path: data/validation.txt}}]
  sequence_length: 32
  tokenizer: {{kind: character}}
model: {{num_layers: 2, num_heads: 2, width: 32}}
optimizer: {{learning_rate: 1e-3, warmup_steps: 10, minimum_learning_rate: 1e-4}}
# XLA compiles for seconds.
train: {{steps: {STEPS}, global_batch_size: 12, steps_per_loop: 5, compile: graph}}
distribution: {{timeout_seconds: 60.0}}
evaluation: {{every: 75, batches: 2}}
checkpoint: {{every: 25}}
logging: {{every: 1}}
watchdog: {{silence_seconds: 5.0}}
"""
# As much as two cores have.
RESOURCES = ("--cpus", "1", "--memory", "4Gi", "--shared-memory", "256Mi", "--grace-seconds", "30")


@dataclass(frozen=True)
class Workshop:
    """A folder as a user has one, with the configuration, the data and the runs."""

    directory: Path

    @property
    def run(self) -> Path:
        return self.directory / "runs" / NAME

    @property
    def step(self) -> int:
        """The last one that was logged."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        with suppress(IndexError, ValueError):  # a line that is being written
            return int(json.loads(lines[-1])["step"])
        return 0

    def drumline(self, *arguments: str, expect: int = 0) -> str:
        """What a command printed."""
        command = [str(BIN / "drumline"), *arguments]
        done = subprocess.run(
            command, cwd=self.directory, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == expect, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def render(self, *options: str) -> list[dict[str, Any]]:
        """The manifests that `drumline launch kubernetes` prints."""
        printed = self.drumline("launch", "kubernetes", *options, "--image", "drumline:rehearsal")
        return [*yaml.safe_load_all(printed)]

    def render_training(self, nodes: int, ranks: int, *options: str) -> list[dict[str, Any]]:
        size = ("--nodes", str(nodes), "--ranks-per-node", str(ranks))
        return self.render("config.yaml", *size, "--data-claim", "data", "--runs-claim", "runs", *RESOURCES, *options)


def make_workshop(directory: Path, data: Path | None = None) -> Workshop:
    """A folder with the configuration, and texts, or the `data` of another."""
    directory.mkdir(exist_ok=True)
    (directory / "runs").mkdir()
    (directory / "config.yaml").write_text(CONFIG)
    if data is not None:
        (directory / "data").symlink_to(data)
    else:
        (directory / "data").mkdir()
        write_texts(directory / "data")
    return Workshop(directory)


def compare(run: Path, reference: Path) -> float:
    """The largest relative difference between a run's losses and those of one process, which had the same samples."""
    assert ledger_hash(run) == ledger_hash(reference)
    return largest_difference(train_losses(run), train_losses(reference))
