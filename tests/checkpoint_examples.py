"""What the tests of checkpoints share: small checkpoints, ways to damage them, and a disk that is soon full."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from trainer.checkpoint import MANIFEST, WEIGHTS, Checkpoint, write_checkpoint
from trainer.progress import Progress, Rollback


def checkpoint(step: int, loss: float | None = None, num_weights: int = 28) -> Checkpoint:
    generator = np.random.default_rng(step)
    weights = {
        "token_embedding": generator.normal(size=(num_weights // 4, 4)).astype(np.float32),
        "gain": np.ones(4, np.float32),
    }
    optimizer = {
        "first_moments.gain": np.full(4, 0.5, np.float32),
        "loss_scale": np.asarray(2.0, np.float32),
        "steps_since_overflow": np.asarray(step, np.int64),
    }
    validation = {} if loss is None else {"loss": loss, "perplexity": math.exp(loss)}
    rollbacks = (Rollback(9, 4, 32, 40, "the loss spiked"),)
    progress = Progress(step, 8 * step + 40, "0f" * 32, validation, rollbacks, recent_losses=(1.5, 1.25), skipped_in_a_row=1)
    return Checkpoint(weights, optimizer, progress, {"seed": 1, "model.width": 4})


def write(directory: Path, *steps: int) -> list[Path]:
    return [write_checkpoint(directory, checkpoint(step), {"world_size": 2}) for step in steps]


def spoil(path: Path, damage: str) -> None:
    weights = path / WEIGHTS
    match damage:
        case "flipped":
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-50])
        case "no manifest":
            (path / MANIFEST).unlink()
        case "half a manifest":
            (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:40])
        case "empty manifest":
            (path / MANIFEST).write_bytes(b"")
        case "missing":
            weights.unlink()
        case "empty":
            shutil.rmtree(path)
            path.mkdir()
        case _:
            raise ValueError(damage)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of `size` (as `1m`) at `folder`; skips the test by name where none can be mounted."""
    folder.mkdir(exist_ok=True)
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs a small file system: mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
