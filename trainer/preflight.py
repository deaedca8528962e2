"""What of a configuration would stop its run here: packages, store, batch, memory, folders and their space. No TensorFlow.

Each check returns its detail, or raises UserWarning for what slows the run down and UserError, with what to do, for what
stops it.
"""

from __future__ import annotations

import platform
import re
import shutil
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from trainer.check import amount, estimate_memory
from trainer.checkpoint import list_checkpoints
from trainer.checkpoint_lock import DirectoryLock
from trainer.config import Config, plan_batches
from trainer.data.folds import trained_and_held_out
from trainer.data.manifest import TOKENIZER_NAME, StoreManifest, read_manifest, read_manifest_of
from trainer.data.store import TokenStore, open_samples, store_tokenizer
from trainer.data.tokenizer import Tokenizer
from trainer.encryption.files import Encryption
from trainer.errors import BackendError, CheckpointError, DataError, UserError
from trainer.files import make_folder, sync, write_atomically
from trainer.location import is_local, listing, make_location, os_errors, remove_folder, written_file
from trainer.models.parameters import Parameter
from trainer.optimizers.slots import num_slot_elements
from trainer.run_directory import RunDirectory
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

Check = tuple[str, Callable[[], str]]

_DISTRIBUTION = "drumline"
_MIB, _GIB = 2**20, 2**30
# A store up to this size is read and hashed, which takes a few seconds; of a larger one sizes and counts are compared.
_HASHED_BYTES = _GIB
# Names, shapes and offsets of tensors, state and manifest.
_BYTES_OF_A_TENSOR = 600
_BYTES_OF_THE_REST = 64 * 1024
# Beyond this part of the memory what the estimate leaves out begins to matter.
_COMFORTABLE_SHARE = 0.8
_TRIAL = b"drumline doctor was here\n"


def checks(
    config: Config, *, num_replicas: int | None, writes: bool, replica_memory: Callable[[], tuple[int, str]]
) -> list[Check]:
    """What can be told of a run here without starting it.

    num_replicas:   those of the whole run; None where it is not known, and what depends on it is not checked
    writes:         whether this machine's process is the one that writes run and checkpoints
    replica_memory: how many bytes each replica on this machine may have, and of what
    """
    found: list[Check] = [
        ("store", lambda: check_store(config)),
        ("batch", lambda: check_batch(config, num_replicas)),
        ("memory", lambda: check_memory(config, num_replicas, replica_memory)),
    ]
    if writes:
        run = RunDirectory(Path(config.run.directory) / config.run.name)
        found += [
            ("run directory", lambda: check_run_directory(run)),
            ("checkpoints", lambda: check_checkpoints(config)),
            ("checkpoint space", lambda: check_space(config)),
        ]
    return found


def check_packages() -> str:
    """Python and the packages that this project requires, in the versions it requires."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        about = metadata.metadata(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise UserWarning("not compared: this is a clone that is not installed; run: make setup") from None
    wrong, found = [], [f"Python {platform.python_version()}"]
    if not SpecifierSet(about["Requires-Python"]).contains(platform.python_version()):
        wrong.append(f"Python is {platform.python_version()}, expected {about['Requires-Python']}")
    for text in metadata.requires(_DISTRIBUTION) or []:
        needed = Requirement(text)
        extra = re.search(r"extra == ['\"](\w+)['\"]", text)
        environment = {"extra": extra[1] if extra else ""}
        if environment["extra"] not in ("", "horovod") or (needed.marker and not needed.marker.evaluate(environment)):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            if not extra:
                wrong.append(f"{needed.name} is not installed, expected {needed.specifier}")
            continue
        if not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} is {version}, expected {needed.specifier}")
        elif needed.name in ("tensorflow", "keras", "horovod"):
            found.append(f"{needed.name} {version}")
    if wrong:
        raise BackendError(f"{'; '.join(wrong)}; in a clone of Drumline run: make setup")
    return f"{', '.join(found)} and the others are of the versions that are required"


def check_store(config: Config) -> str:
    """That the store is whole, was made with these settings, and has a sequence of each split."""
    data, folder = config.data, Path(config.data.store)
    manifest = read_manifest_of(config)
    tokenizer = store_tokenizer(config).fingerprint
    if tokenizer != manifest.tokenizer_fingerprint:
        raise DataError(f"{folder / TOKENIZER_NAME}: has changed since the store was made; run: drumline prepare CONFIG")
    wanted = None if data.tokenizer.path is None else Tokenizer.load(Path(data.tokenizer.path)).fingerprint
    num_bytes = sum(part.num_bytes for split in (manifest.train, manifest.validation) for each in split for part in each.parts)
    hashed = num_bytes <= _HASHED_BYTES
    for split in ("train", "validation") if data.validation else ("train",):
        samples = open_samples(config, split, fingerprint=wanted)
        if split == "train" and data.folds is not None:
            trained_and_held_out(samples, data.folds)
        if hashed:
            TokenStore(folder, split, Encryption.of(config.security), verify=True)
    compared = "sizes, counts and hashes are right" if hashed else "sizes and counts are right, contents not read"
    return f"{folder}: {manifest.num_tokens('train'):,} tokens in {amount(num_bytes)}; {compared}"


def check_batch(config: Config, num_replicas: int | None) -> str:
    plan = plan_batches(config.train, _known(num_replicas))
    replicas = "1 replica" if plan.num_replicas == 1 else f"{plan.num_replicas} replicas"
    micro = "1 micro-batch" if plan.num_micro_batches == 1 else f"{plan.num_micro_batches} micro-batches"
    return f"{plan.global_batch_size:,} sequences = {replicas} x {micro} x {plan.rows_per_micro_batch:,} sequences"


def check_memory(config: Config, num_replicas: int | None, replica_memory: Callable[[], tuple[int, str]]) -> str:
    """That the estimate of `drumline check` fits into what each replica has."""
    try:
        plan = plan_batches(config.train, _known(num_replicas))
    except UserError:
        raise UserWarning("not estimated, since the batch does not divide") from None
    weights, vocabulary_size = _weights(config)
    needed = estimate_memory(config, plan, weights, vocabulary_size)
    available, what = replica_memory()
    told = f"about {amount(needed.total)} a replica of {amount(available)} ({what})"
    if needed.total > available:
        fixed = needed.total - needed.activations
        smaller = "model" if fixed > available else "train.micro_batch_size, data.sequence_length or model"
        raise BackendError(f"{told}; take a smaller {smaller}, or more memory; `drumline check` shows what it is for")
    if needed.total > _COMFORTABLE_SHARE * available:
        raise UserWarning(f"{told}; the estimate leaves out what the compiler keeps: it may not fit")
    return told


def check_run_directory(run: RunDirectory) -> str:
    """That files can be made, renamed and brought to disk where the run's folder is, or will be."""
    folder = run.path if run.path.exists() else run.path.parent
    try:
        make_folder(folder)
        _try_local(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written: {error}; see who owns it, whether it is mounted read-only or full, or take another "
            "run.directory"
        ) from error
    return f"{folder}: written, renamed and brought to disk"


def check_checkpoints(config: Config) -> str:
    """That checkpoints can be written, listed, read back and deleted where they shall lie, and that no other run does so."""
    directory = RunDirectory.of(config).checkpoints
    if config.checkpoint.directory is None and not directory.exists():
        return f"{directory}: new with this run"
    try:
        make_location(directory)
        _try_anywhere(directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot be written, listed and read back: {error}; see whether it is there, and whether this account "
            "and its keys may write there"
        ) from error
    with DirectoryLock(directory, "drumline doctor"):
        pass
    return f"{directory}: written, listed, read back and deleted; no other run saves there"


def check_space(config: Config) -> str:
    """That there is room for all checkpoints that are kept at once, and the one that is being written."""
    directory = RunDirectory.of(config).checkpoints
    if not is_local(directory):
        raise UserWarning(f"{directory}: how much room there is cannot be asked for behind a URL")
    weights, _ = _weights(config)
    elements = sum(weight.num_elements for weight in weights.values())
    elements += num_slot_elements(config.optimizer, weights.values())
    if config.train.average_decay is not None:
        elements += sum(weight.num_elements for weight in weights.values() if weight.is_trainable)
    each = 4 * elements + _BYTES_OF_A_TENSOR * len(weights) + _BYTES_OF_THE_REST
    policy = config.checkpoint
    num_saves = -(-config.train.steps // policy.every)
    kept = policy.keep_last + policy.keep_best + (config.train.steps // policy.keep_every if policy.keep_every else 0)
    count = min(kept + 1, num_saves)
    there = sum(info.num_bytes for info in list_checkpoints(directory))
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    needed = max(0, count * each - there)
    beside = f", of which {amount(there)} are there" if there else ""
    told = f"{count} x {amount(each)} = {amount(count * each)} in {directory}{beside}; {amount(free)} free"
    if needed > free:
        raise CheckpointError(
            f"{told}; make room for {amount(needed - free)}, lower checkpoint.keep_last or keep_best, or take another "
            "checkpoint.directory"
        )
    return told


def _weights(config: Config) -> tuple[dict[str, Parameter], int]:
    """The weights by name, and the size of the vocabulary. Raises UserWarning where nothing says yet how large that is."""
    vocabulary_size = config.data.tokenizer.vocabulary_size
    manifest = _manifest(config)
    if manifest is not None:
        vocabulary_size = manifest.vocabulary_size
    if vocabulary_size is None:
        raise UserWarning("not estimated: the number of tokens is known after `drumline prepare`")
    labels = manifest.labels if manifest is not None else config.data.labels or ()
    return run_parameters(config, Sizes(vocabulary_size, len(labels))), vocabulary_size


def _manifest(config: Config) -> StoreManifest | None:
    """The store's, whatever made it; None where there is none to be read: that is the complaint of another check."""
    try:
        return read_manifest(Path(config.data.store))
    except DataError:
        return None


def _known(num_replicas: int | None) -> int:
    if num_replicas is None:
        raise UserWarning("not checked, since it is not known how many replicas there will be")
    return num_replicas


def _try_local(folder: Path) -> None:
    """Makes a folder and a file in it, renames both, sees them to disk, and takes them away. Raises OSError."""
    trial = folder / f".doctor-{uuid.uuid4().hex}"
    renamed = trial.with_suffix(".renamed")
    try:
        make_folder(trial)
        write_atomically(trial / "file", _TRIAL)
        trial.rename(renamed)
        sync(folder)
        _compare((renamed / "file").read_bytes(), renamed)
    finally:
        for each in (trial, renamed):
            shutil.rmtree(each, ignore_errors=True)


def _try_anywhere(directory: Path) -> None:
    """As a checkpoint is written and deleted, in a local folder or behind a URL. Raises OSError."""
    if is_local(directory):
        _try_local(directory)
        return
    trial = directory / f"doctor-{uuid.uuid4().hex}"
    make_location(trial)
    with written_file(trial / "file") as file:
        file.write(_TRIAL)
    if listing(trial).get("file") != len(_TRIAL):
        raise OSError(f"{trial}/file was written, and is not in the listing")
    with os_errors():
        _compare((trial / "file").read_bytes(), trial)
    remove_folder(trial, first="file")


def _compare(content: bytes, place: Path) -> None:
    if content != _TRIAL:
        raise OSError(f"{place}/file has other bytes than were written")
