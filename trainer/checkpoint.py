"""Checkpoints: write, verify, find, read, prune.

A checkpoint is a folder `step-00001000`. In a local folder it appears at once: its files are written beside it, hashed and
brought to disk, the manifest last, and then the folder is renamed. Behind a URL, where nothing can be renamed at once, the
files are written to their place and the manifest last: without it the folder does not count. So what counts was written
whole, and whether something damaged it later the hashes tell. Weights and optimizer state are safetensors: nothing is
unpickled. With `security.encrypt` all files but the manifest are encrypted; only reading their content takes the key.

`directory` is everywhere what `open_location` returns. One process at a time may write to it: see `DirectoryLock`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint_manifest import MANIFEST, UNFINISHED, manifest_bytes, read_manifest
from trainer.config import METRICS_TO_MINIMIZE, CheckpointConfig
from trainer.encryption.files import PLAIN, Encryption, stored_sha256
from trainer.errors import CheckpointError
from trainer.files import put_in_place, sync
from trainer.location import is_local, listing, make_location, os_errors, remove_folder, written_file
from trainer.location import open_location as open_location
from trainer.progress import Progress
from trainer.safetensors_file import Writable, read_tensors, write_tensors

logger = logging.getLogger(__name__)

STATE = "state.json"
WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer-00000-of-00001.safetensors"
AVERAGE = "average/"  # what precedes the names of weights in OPTIMIZER, of their moving averages
_NAME = re.compile(r"step-\d+")


@dataclass(frozen=True)
class Checkpoint:
    """What is saved: weights and optimizer state by name, progress, and `identity`, which a run must share to go on from it."""

    weights: Mapping[str, np.ndarray]
    optimizer: Mapping[str, np.ndarray]
    progress: Progress
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint as it lies on disk. `problem` says what is wrong with it as far as the manifest and the sizes of the files
    tell; None where nothing is."""

    path: Path
    step: int
    num_bytes: int
    validation: Mapping[str, float]
    problem: str | None


def write_checkpoint(
    directory: Path, checkpoint: Checkpoint, context: Mapping[str, Any], encryption: Encryption = PLAIN
) -> Path:
    """Writes `directory/step-N` and returns its path; `context` (versions, world size) goes into the manifest as it is.

    A good checkpoint of that step that is there already is kept as it is. Raises OSError where it cannot be written,
    and then takes away again what it did write.
    """
    final = _path(directory, checkpoint.progress.step)
    there = listing(final)
    if there:
        problem = _verify(final)
        if problem is None:
            logger.info("kept %s, which was there already and is good", final)
            return final
        logger.warning("checkpoint %s is damaged and is replaced: %s", final, problem)
    make_location(directory)
    folder = final
    if is_local(directory):
        _remove_leftovers(directory)
        folder = directory / f".{final.name}.partial"
    elif there:
        _delete(final)
    try:
        make_location(folder)
        _write_files(folder, final.name, checkpoint, context, encryption)
        if is_local(directory):
            sync(folder)
            if there:
                _delete(final)
            put_in_place(folder, final)
    except BaseException:
        _clean_up(folder)
        raise
    return final


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """The checkpoints of a run by step, by what their manifests say; `verify_checkpoint` looks into the files.

    Raises CheckpointError where the folder cannot be read; one that does not exist has none.
    """
    with _reading(directory):
        return _list(directory)


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint: a manifest or file that is missing, cut short, or changed; None where it is whole.

    Behind a URL every byte is downloaded for it, a piece at a time. Raises CheckpointError where a server does not answer:
    that says nothing about the checkpoint.
    """
    with _reading(path):
        return _verify(path)


def newest_good(directory: Path, before_step: int | None = None) -> Path | None:
    """The newest checkpoint (before a step) that passes verification; damaged ones are named in the log. None where there are
    none, or behind a URL none that was ever finished.

    Raises CheckpointError where there are some and every one is damaged: a silent restart from zero would hide the loss.
    """
    problems = []
    for info in reversed(list_checkpoints(directory)):
        if before_step is not None and info.step >= before_step:
            continue
        problem = info.problem or verify_checkpoint(info.path)
        if problem is None:
            return info.path
        if problem == UNFINISHED:
            logger.warning("checkpoint %s is passed over: %s", info.path, problem)
            continue
        problems.append(f"{info.path.name}: {problem}")
        logger.warning("checkpoint %s is damaged and is passed over: %s", info.path, problem)
    if problems:
        among = "" if before_step is None else f" before step {before_step}"
        raise CheckpointError(
            f"{directory}: none of its {len(problems)} checkpoints{among} is good ({'; '.join(problems)}); "
            "restore one from a backup, or train under another run.name"
        )
    return None


def choose_checkpoint(directory: Path, which: str, metric: str = "loss") -> Path:
    """The checkpoint named by `latest`, `best` (least `metric` of the validation) or a step number, verified."""
    infos = list_checkpoints(directory)
    if which == "latest":
        path = newest_good(directory)
    elif which == "best":
        path = next((info.path for info in _rated(infos, metric)), None)
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


def read_checkpoint(path: Path, encryption: Encryption = PLAIN) -> Checkpoint:
    """A checkpoint's contents, read (behind a URL: downloaded) a piece at a time into the arrays' own memory.

    It is expected to have passed `verify_checkpoint`. Raises CheckpointError where it cannot be read, and SecurityError where
    `encryption` does not open it.
    """
    progress, identity = read_state(path, encryption)
    weights, optimizer = (_read_tensors(path / name, encryption) for name in (WEIGHTS, OPTIMIZER))
    return Checkpoint(weights, optimizer, progress, identity)


def read_state(path: Path, encryption: Encryption = PLAIN) -> tuple[Progress, Mapping[str, Any]]:
    """Where a checkpoint's run stands, and what a run must share to go on from it."""
    with _reading(path):
        state = json.loads(encryption.read_bytes(path / STATE, _bound_name(path, STATE)))
    return Progress.from_json(state["progress"]), state["identity"]


def read_weights(path: Path, encryption: Encryption = PLAIN) -> dict[str, np.ndarray]:
    """The weights of a checkpoint by name, to evaluate, predict with or export: of those that have a moving average
    (`train.average_decay`) that, which is told. A run goes on with those of `read_checkpoint`."""
    weights = _read_tensors(path / WEIGHTS, encryption)
    averages = _read_tensors(path / OPTIMIZER, encryption, AVERAGE)
    if averages:
        logger.info("%s: the weights are their moving averages", path)
    return weights | {name.removeprefix(AVERAGE): average for name, average in averages.items()}


def prune_checkpoints(directory: Path, policy: CheckpointConfig) -> list[Path]:
    """Deletes what need not be kept, and what interrupted writes left; the paths of the checkpoints deleted.

    Kept are the newest `keep_last`, those whose step is a multiple of `keep_every`, and the `keep_best` of the least
    `best_metric`. One whose manifest or files are missing or cut short does not count as kept: it must not push out a good
    one. Raises OSError where it cannot be done.
    """
    infos = _list(directory)
    whole = [info for info in infos if info.problem is None]
    kept = {info.path for info in [*whole[-policy.keep_last :], *_rated(whole, policy.best_metric)[: policy.keep_best]]}
    if policy.keep_every is not None:
        kept |= {info.path for info in whole if info.step % policy.keep_every == 0}
    doomed = [info.path for info in infos if kept and info.path not in kept]
    for path in doomed:
        _delete(path)
    if is_local(directory):
        _remove_leftovers(directory)
    return doomed


def discard_after(directory: Path, step: int) -> list[Path]:
    """Deletes all checkpoints of later steps, the newest first; their paths. Raises CheckpointError where it cannot."""
    doomed = [info.path for info in reversed(list_checkpoints(directory)) if info.step > step]
    for path in doomed:
        try:
            _delete(path)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be deleted ({error}); delete the checkpoints after step {step} before the run goes on"
            ) from error
    return doomed


def _path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _bound_name(path: Path, file: str) -> str:
    """What an encrypted file of the checkpoint at `path` is bound to."""
    return f"{path.name}/{file}"


def _write_files(
    folder: Path, final_name: str, checkpoint: Checkpoint, context: Mapping[str, Any], encryption: Encryption
) -> None:
    """To `folder`, which will be called `final_name` when it is whole."""
    files, began = {}, time.monotonic()

    def write(name: str, write_to: Callable[[Writable], object]) -> None:
        with written_file(folder / name) as file, encryption.writing(file, f"{final_name}/{name}") as output:
            write_to(output)
        files[name] = {"num_bytes": output.num_bytes, "sha256": output.sha256}

    state = {"progress": checkpoint.progress.to_json(), "identity": dict(checkpoint.identity)}
    write(WEIGHTS, lambda file: write_tensors(file, checkpoint.weights))
    write(OPTIMIZER, lambda file: write_tensors(file, checkpoint.optimizer))
    write(STATE, lambda file: file.write(json.dumps(state).encode()))
    manifest = {
        "step": checkpoint.progress.step,
        "validation": dict(checkpoint.progress.validation),
        "created": time.time(),
        "save_seconds": time.monotonic() - began,
        "context": dict(context),
        "files": files,
    }
    with written_file(folder / MANIFEST) as file:
        file.write(manifest_bytes(manifest))


def _clean_up(folder: Path) -> None:
    """Takes away what a failed write left; where that fails, too, the next write or pruning will."""
    try:
        if listing(folder):
            remove_folder(folder, first=MANIFEST)
    except OSError as error:
        logger.warning("%s: what an unfinished save left could not be deleted (%s)", folder, error)


def _remove_leftovers(directory: Path) -> None:
    """Deletes the folders that a write or a deletion left half done when it was killed. Nobody else is at work on them: the
    directory is locked."""
    for name in listing(directory):
        if name.startswith(".step-") and name.endswith(".partial"):
            shutil.rmtree(directory / name)


def _delete(path: Path) -> None:
    """Deletes a checkpoint so that a kill in between leaves none that is half there: its name goes before its files do, or,
    behind a URL, its manifest."""
    if not is_local(path):
        remove_folder(path, first=MANIFEST)
        return
    doomed = path.with_name(f".{path.name}.deleted.partial")
    if doomed.exists():
        shutil.rmtree(doomed)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _list(directory: Path) -> list[CheckpointInfo]:
    folders = [name for name, size in listing(directory).items() if size is None and _NAME.fullmatch(name)]
    return sorted((_describe(directory / name) for name in folders), key=lambda info: info.step)


def _describe(path: Path) -> CheckpointInfo:
    sizes = listing(path)
    manifest, problem = read_manifest(path, _step(path))
    if manifest is not None:
        problem = _wrong_size(manifest, sizes)
    validation = manifest["validation"] if manifest is not None else {}
    return CheckpointInfo(path, _step(path), sum(size or 0 for size in sizes.values()), validation, problem)


def _verify(path: Path) -> str | None:
    manifest, problem = read_manifest(path, _step(path))
    if manifest is None:
        return problem
    problem = _wrong_size(manifest, listing(path))
    if problem is not None:
        return problem
    for name, expected in manifest["files"].items():
        try:
            with os_errors():
                sha256, problem = stored_sha256(path / name)
        except OSError as error:
            if not is_local(path):
                raise
            return f"{name} cannot be read ({error.strerror})"
        if problem is not None:
            return f"{name}: {problem}"
        if sha256 != expected["sha256"]:
            return f"{name} has changed since it was written (its sha256 differs)"
    return None


def _wrong_size(manifest: Mapping[str, Any], sizes: Mapping[str, int | None]) -> str | None:
    for name, expected in manifest["files"].items():
        size = sizes.get(name)
        if size is None:
            return f"{name} is missing"
        if size != expected["num_bytes"]:
            return f"{name} has {size} bytes instead of {expected['num_bytes']}"
    return None


def _rated(infos: Sequence[CheckpointInfo], metric: str) -> list[CheckpointInfo]:
    """Those whose validation has the metric, the best first. A metric that is not finite is none."""
    rated = [info for info in infos if math.isfinite(info.validation.get(metric, math.nan))]
    return sorted(rated, key=lambda info: info.validation[metric], reverse=metric not in METRICS_TO_MINIMIZE)


def _read_tensors(path: Path, encryption: Encryption, prefix: str = "") -> dict[str, np.ndarray]:
    with _reading(path), encryption.opened(path, _bound_name(path.parent, path.name)) as file:
        return read_tensors(file, prefix)


@contextmanager
def _reading(location: Path) -> Iterator[None]:
    """What cannot be read is the user's to put right: a folder that may not be read, a server that does not answer."""
    try:
        with os_errors():
            yield
    except OSError as error:
        raise CheckpointError(f"{location}: cannot be read ({error}); see what is wrong there, and start again") from error
