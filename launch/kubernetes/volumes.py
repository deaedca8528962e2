"""Which folders of a configuration lie on which volume, and the claims and mounts that follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath

from launch.kubernetes.objects import Manifest, object_of
from launch.kubernetes.options import Claim, Options
from trainer.config import Config
from trainer.errors import UserError

WORKING_DIRECTORY = PurePosixPath("/drumline")
CONFIG_FOLDER = "/etc/drumline"
SECRET_FOLDER = "/etc/drumline-secret"

# Folders of the image, or of the container's runtime: a volume there would hide what the programs need.
_TAKEN = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var")


@dataclass(frozen=True)
class Folders:
    """Where the two volumes are mounted."""

    data: PurePosixPath
    runs: PurePosixPath


def find_folders(config: Config) -> Folders:
    """The folder of each volume: the first one of the path that the other's does not share, so `data` for a store in
    `data/demo/store` and `runs` for runs in `runs`; a claim then has what that folder has on a workstation.

    Raises UserError where they cannot be mounted, or where checkpoints would be on no volume.
    """
    store, runs = _place("data.store", config.data.store), _place("run.directory", config.run.directory)
    if store.is_relative_to(runs) or runs.is_relative_to(store):
        raise UserError(
            f"data.store and run.directory: got {config.data.store} and {config.run.directory}, one within the other; "
            "each is on a volume of its own: take folders beside each other, as in data/demo and runs"
        )
    folders = Folders(_outermost(store, runs), _outermost(runs, store))
    directory = config.checkpoint.directory
    if directory is not None and not is_remote(directory):
        local = directory.removeprefix("file://").removeprefix("local://")
        _require_on("checkpoint.directory", local, folders.runs, "the runs", f"{config.run.directory}/checkpoints")
    return folders


def require_inputs(config: Config, folders: Folders) -> None:
    """Raises UserError where `drumline prepare` would read something that is not on the data volume."""
    example = f"{config.data.store}/../text.txt"
    for split, sources in (("train", config.data.train), ("validation", config.data.validation)):
        for number, source in enumerate(sources):
            _require_on(f"data.{split}[{number}].path", source.path, folders.data, "the data", normpath(example))
    if config.data.tokenizer.path is not None:
        _require_on("data.tokenizer.path", config.data.tokenizer.path, folders.data, "the data", normpath(example))


def is_remote(directory: str | None) -> bool:
    """Whether a checkpoint's directory is behind a URL."""
    return directory is not None and "://" in directory and directory.partition("://")[0] not in ("file", "local")


def new_claims(options: Options, claims: dict[str, Claim]) -> Iterator[Manifest]:
    """The claims that are not in the cluster yet, by the suffix of their names."""
    for suffix, claim in claims.items():
        if claim.size is None:
            continue
        spec: Manifest = {"accessModes": ["ReadWriteMany"]}
        if claim.storage_class is not None:
            spec["storageClassName"] = claim.storage_class
        spec["resources"] = {"requests": {"storage": claim.size}}
        yield {**object_of("PersistentVolumeClaim", "v1", options, suffix), "spec": spec}


def claim_volumes(**claims: Claim) -> tuple[list[Manifest], dict[str, str]]:
    """The volumes of claims, and the volume's name of each. Two volumes of one claim would keep a pod from starting
    (kubernetes/kubernetes#82526), so a claim that serves twice is one volume."""
    names: dict[str, str] = {}
    for role, claim in claims.items():
        names.setdefault(claim.name, role)
    volumes: list[Manifest] = [{"name": role, "persistentVolumeClaim": {"claimName": name}} for name, role in names.items()]
    return volumes, {role: names[claim.name] for role, claim in claims.items()}


def _place(key: str, path: str) -> PurePosixPath:
    """Where a path of the configuration is in the container. Raises UserError where no volume can be mounted there."""
    if path.startswith("~") or ":" in path:
        raise UserError(f"{key}: got {path}, expected a path of the container, relative to {WORKING_DIRECTORY} or absolute")
    place = PurePosixPath(normpath(WORKING_DIRECTORY / path))
    if WORKING_DIRECTORY.is_relative_to(place):
        raise UserError(
            f"{key}: got {path}, which is the working directory in the container or around it; a volume is mounted there: "
            "take a folder below it"
        )
    if place.parts[1] in _TAKEN:
        raise UserError(f"{key}: got {path}, in /{place.parts[1]} of the container, which is not the data's; take another")
    return place


def _outermost(path: PurePosixPath, other: PurePosixPath) -> PurePosixPath:
    around = [*reversed(path.parents), path]
    return next(folder for folder in around if not other.is_relative_to(folder) and folder != WORKING_DIRECTORY)


def _require_on(key: str, path: str, folder: PurePosixPath, volume: str, example: str) -> None:
    place = PurePosixPath(normpath(WORKING_DIRECTORY / path))
    if path.startswith("~") or not place.is_relative_to(folder):
        shown = folder.relative_to(WORKING_DIRECTORY) if folder.is_relative_to(WORKING_DIRECTORY) else folder
        raise UserError(
            f"{key}: got {path}, which is on no volume; expected a path in {shown}, where the volume of {volume} is mounted, "
            f"as in {example}"
        )
