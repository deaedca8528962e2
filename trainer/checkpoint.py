"""Checkpoints: write, verify, find, read, prune.

A checkpoint is a folder `step-00001000` that appears at once: its files are written beside it, hashed and brought to disk, the
manifest last, and then the folder is renamed. So one that has its name is whole, unless the disk damaged it later, which
the hashes tell. Weights and optimizer state are safetensors: nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from trainer.errors import CheckpointError
from trainer.files import file_sha256, put_in_place, sync

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer-00000-of-00001.safetensors"
_NAME = re.compile(r"step-\d+")


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `num_samples`, the number of samples consumed, is all the state that the data has."""

    step: int = 0
    num_samples: int = 0
    ledger_hash: str = ""
    validation_loss: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What is saved: weights and optimizer state by name, progress, and `identity`, which a run must share to go on from it."""

    weights: Mapping[str, np.ndarray]
    optimizer: Mapping[str, np.ndarray]
    progress: Progress
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint as it lies on disk. `problem` says what is wrong with it; None where nothing is."""

    path: Path
    step: int
    num_bytes: int
    validation_loss: float | None
    problem: str | None


def write_checkpoint(directory: Path, checkpoint: Checkpoint, context: Mapping[str, Any]) -> Path:
    """Writes `directory/step-N` and returns its path; `context` (versions, world size) goes into the manifest as it is."""
    final = _path(directory, checkpoint.progress.step)
    partial = directory / f".{final.name}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    save_file(dict(checkpoint.weights), partial / WEIGHTS)
    save_file(dict(checkpoint.optimizer), partial / OPTIMIZER)
    (partial / STATE).write_text(json.dumps({"progress": asdict(checkpoint.progress), "identity": checkpoint.identity}))
    files = {}
    for name in (WEIGHTS, OPTIMIZER, STATE):
        sync(partial / name)
        files[name] = {"num_bytes": (partial / name).stat().st_size, "sha256": file_sha256(partial / name)}
    manifest = {
        "format": FORMAT,
        "step": checkpoint.progress.step,
        "validation_loss": checkpoint.progress.validation_loss,
        "created": time.time(),
        "context": dict(context),
        "files": files,
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    sync(partial / MANIFEST)
    sync(partial)
    if final.exists():  # one that was passed over as damaged
        _delete(final)
    put_in_place(partial, final)
    return final


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """The checkpoints of a run by step, by what their manifests say; `verify_checkpoint` looks into the files."""
    paths = [path for path in directory.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted((_describe(path) for path in paths), key=lambda info: info.step)


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint: a manifest or file that is missing, cut short, or changed; None where it is whole."""
    manifest, problem = _manifest(path)
    if manifest is None:
        return problem
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["num_bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['num_bytes']}"
        if file_sha256(file) != expected["sha256"]:
            return f"{name} has changed since it was written (its sha256 differs)"
    return None


def newest_good(directory: Path) -> Path | None:
    """The newest checkpoint that passes verification; damaged ones are named in the log. None where there is none at all.

    Raises CheckpointError where there are some and every one is damaged: a silent restart from zero would hide the loss.
    """
    problems = []
    for info in reversed(list_checkpoints(directory)):
        problem = info.problem or verify_checkpoint(info.path)
        if problem is None:
            return info.path
        problems.append(f"{info.path.name}: {problem}")
        logger.warning("checkpoint %s is damaged and is passed over: %s", info.path, problem)
    if problems:
        raise CheckpointError(
            f"{directory}: none of its {len(problems)} checkpoints is good ({'; '.join(problems)}); "
            "restore one from a backup, or train under another run.name"
        )
    return None


def choose_checkpoint(directory: Path, which: str) -> Path:
    """The checkpoint named by `latest`, `best` (least validation loss) or a step number, verified."""
    infos = list_checkpoints(directory)
    if which == "latest":
        path = newest_good(directory)
    elif which == "best":
        rated = [info for info in infos if info.validation_loss is not None]
        path = min(rated, key=lambda info: info.validation_loss or 0.0).path if rated else None
    elif which.isdecimal():
        path = next((info.path for info in infos if info.step == int(which)), None)
    else:
        raise CheckpointError(f"--checkpoint: got {which!r}, expected latest, best, or the number of a step")
    if path is None:
        present = ", ".join(str(info.step) for info in infos) or "none"
        raise CheckpointError(f"{directory}: no checkpoint {which}; there are: {present}")
    if which != "latest":  # the newest good one was read and hashed when it was found
        problem = verify_checkpoint(path)
        if problem is not None:
            raise CheckpointError(f"{path}: {problem}; choose another with --checkpoint")
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint's contents. It is expected to have passed `verify_checkpoint`."""
    progress, identity = read_state(path)
    return Checkpoint(read_weights(path), load_file(path / OPTIMIZER), progress, identity)


def read_state(path: Path) -> tuple[Progress, Mapping[str, Any]]:
    """Where a checkpoint's run stands, and what a run must share to go on from it."""
    state = json.loads((path / STATE).read_text())
    return Progress(**state["progress"]), state["identity"]


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint alone, by name."""
    return load_file(path / WEIGHTS)


def prune_checkpoints(directory: Path, keep_last: int, keep_best: int) -> None:
    """Deletes all but the newest `keep_last` and the `keep_best` of least validation loss, and what interrupted writes left.

    One whose manifest is missing or unreadable does not count as kept: it must not push out a good one.
    """
    infos = list_checkpoints(directory)
    readable = [info for info in infos if info.problem is None]
    rated = sorted(
        (info for info in readable if info.validation_loss is not None), key=lambda info: info.validation_loss or 0.0
    )
    kept = {info.path for info in [*readable[-keep_last:], *rated[:keep_best]]}
    for info in infos:
        if kept and info.path not in kept:
            _delete(info.path)
    for leftover in directory.glob(".step-*.partial"):
        shutil.rmtree(leftover)


def _path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def _delete(path: Path) -> None:
    """Takes a checkpoint's name away before its files, so that a kill in between leaves none that is half there."""
    doomed = path.with_name(f".{path.name}.deleted.partial")
    if doomed.exists():
        shutil.rmtree(doomed)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _describe(path: Path) -> CheckpointInfo:
    step = int(path.name.removeprefix("step-"))
    num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    manifest, problem = _manifest(path)
    validation_loss = manifest["validation_loss"] if manifest is not None else None
    return CheckpointInfo(path, step, num_bytes, validation_loss, problem)


def _manifest(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """A checkpoint's manifest, or what is wrong with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None, f"{MANIFEST} is missing"
    except ValueError as error:
        return None, f"{MANIFEST} cannot be read ({error})"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None, f"{MANIFEST} is not of format {FORMAT}"
    return manifest, None
