"""What the tests of training share: a small run on English text, started in this process or as others, and what it wrote."""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.config_io import dump_config

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TEXT = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


def training_config(directory: Path, name: str, **sections: Mapping[str, Any]) -> Config:
    """A small run in `directory/runs/name` on the store in `directory/store`; sections are changed key by key."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": name, "directory": str(directory / "runs"), "seed": 7},
        "data": {
            "store": str(directory / "store"),
            "format": "lines",
            "train": [{"path": str(directory / "train.txt")}],
            "validation": [{"path": str(directory / "validation.txt")}],
            "sequence_length": 32,
            "tokenizer": {"kind": "character"},
        },
        "model": {"num_layers": 2, "num_heads": 2, "width": 32},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 4, "minimum_learning_rate": 3e-4},
        "train": {"steps": 20, "global_batch_size": 8, "steps_per_loop": 5, "compile": "graph"},  # XLA compiles for seconds
        "distribution": {"backend": "single", "timeout_seconds": 60.0},
        "evaluation": {"every": 10, "batches": 2},
        "checkpoint": {"every": 10},
        "logging": {"every": 1},
        "divergence": {},
        "watchdog": {},
    }
    for section, changes in sections.items():
        values[section] |= changes
    return Config.model_validate(values)


def write_texts(directory: Path, num_characters: int = 20_000) -> None:
    """English text for training and, after it, for validation: one document a line, of very unequal lengths."""
    lines = [line for line in TEXT[: num_characters + num_characters // 4].splitlines() if line.strip()]
    border = len(lines) * 4 // 5
    (directory / "train.txt").write_text("\n".join(lines[:border]) + "\n")
    (directory / "validation.txt").write_text("\n".join(lines[border:]) + "\n")


def write_config(config: Config, path: Path) -> Path:
    path.write_text(dump_config(config))
    return path


def run_path(config: Config) -> Path:
    return Path(config.run.directory) / config.run.name


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_losses(run: Path) -> dict[int, float]:
    """The training loss of each logged step; no step may be there twice."""
    lines = [line for line in json_lines(run / "metrics.jsonl") if line["split"] == "train"]
    losses = {line["step"]: line["loss"] for line in lines}
    assert len(losses) == len(lines), f"{run}: steps are logged twice"
    return losses


def ledger_hash(run: Path) -> str:
    """The rolling hash after the last step."""
    return str([line for line in json_lines(run / "ledger.jsonl") if "hash" in line][-1]["hash"])


def largest_difference(losses: Mapping[int, float], reference: Mapping[int, float]) -> float:
    """The largest relative difference between two runs' losses, which must have the same steps."""
    assert losses.keys() == reference.keys()
    return max(abs(losses[step] - reference[step]) / abs(reference[step]) for step in reference)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what a launcher or a test before may have left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOROVOD", "TF_CONFIG"))}
    path = os.pathsep.join([str(BIN), kept.get("PATH", "")])
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2", "PATH": path, "PYTHONPATH": str(ROOT)} | changes


def run_python(
    *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Runs this Python to its end, whatever its exit code."""
    return run_command([sys.executable, *map(str, arguments)], env, timeout)


def run_command(
    command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env or environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def checked(finished: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """What a process printed, provided that it ended well."""
    assert finished.returncode == 0, f"exit code {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished
