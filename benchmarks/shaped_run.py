"""A run of `drumline` at a given shape on text made up for it, for the benchmarks that measure more of one than its step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from random_text import write_documents
from step_time import Shape

FIRST_SHAPE = "6,384,6,256,8,8192"
SMALL_SHAPE = "1,32,2,32,4,512"
# What the tokenizer is trained on, and enough for some hundred steps of the first shape.
NUM_BYTES = 4_000_000


def shape_of(text: str) -> Shape:
    return Shape(*(int(number) for number in text.split(",")))


def prepare_run(directory: Path, shape: Shape, num_steps: int) -> Path:
    """Writes text and configuration into `directory` and makes the store; the configuration's file."""
    write_documents(directory / "text.txt", NUM_BYTES)
    config = {
        "run": {"name": "run", "directory": str(directory / "runs")},
        "data": {
            "store": str(directory / "store"),
            "train": [{"path": str(directory / "text.txt")}],
            "format": "lines",
            "sequence_length": shape.length,
            "tokenizer": {"kind": "bpe", "vocabulary_size": shape.vocabulary},
        },
        "model": {"num_layers": shape.num_layers, "num_heads": shape.num_heads, "width": shape.width},
        "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
        "train": {"steps": num_steps, "global_batch_size": shape.batch},
        "distribution": {"backend": "single"},
        "logging": {"every": 1},
    }
    path = directory / "config.yaml"
    path.write_text(json.dumps(config))
    drumline("prepare", str(path))
    return path


def drumline(*arguments: str) -> None:
    """Runs a verb of this clone's."""
    run_python(["-m", "trainer", *arguments])


def run_python(arguments: Sequence[str]) -> str:
    """Runs this Python with this clone on its path; what it printed. Ends all where it fails."""
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout


def read_metrics(directory: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's training steps."""
    lines = (directory / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [values for values in map(json.loads, lines) if values["split"] == "train"]
