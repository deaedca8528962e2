"""The cluster's Secrets that pods are given beside their own: variables, and the key of `security.key_file`."""

from __future__ import annotations

from pathlib import PurePosixPath
from posixpath import normpath

from launch.kubernetes.objects import Manifest
from launch.kubernetes.options import KeySecret, Options
from launch.kubernetes.volumes import CONFIG_FOLDER, SECRET_FOLDER, WORKING_DIRECTORY, find_folders
from trainer.config import Config
from trainer.errors import UserError

READABLE_BY_GROUP = 0o440
_VOLUME = "key"


def key_secret(config: Config, secret: str | None, environment_secret: str | None) -> KeySecret | None:
    """Where the Secret of the key is mounted: so that its file is where the configuration looks for it.

    Raises UserError where pods would have no key, or one that they do not look for.
    """
    security = config.security
    if security.key_environment is not None and environment_secret is None:
        raise UserError(
            f"--environment-secret: got nothing, expected a Secret with the key {security.key_environment}, which "
            "security.key_environment names"
        )
    if security.key_file is None:
        if secret is not None:
            raise UserError(
                f"--key-secret: got {secret}, expected nothing without security.key_file, where it would be mounted"
            )
        return None
    place = PurePosixPath(normpath(WORKING_DIRECTORY / security.key_file))
    if secret is None:
        raise UserError(
            f"--key-secret: got nothing, expected a Secret with the key {place.name}, which security.key_file names; make one: "
            f"kubectl create secret generic NAME --from-file={place.name}={security.key_file}"
        )
    folders = find_folders(config)
    for folder in (WORKING_DIRECTORY, folders.data, folders.runs, PurePosixPath(CONFIG_FOLDER), PurePosixPath(SECRET_FOLDER)):
        inside = folder != WORKING_DIRECTORY and place.parent.is_relative_to(folder)
        if inside or folder.is_relative_to(place.parent):
            raise UserError(
                f"security.key_file: got {security.key_file}, in or around {folder} of the container, and the Secret would be "
                "mounted over it; take a folder of its own, as in keys/drumline.key"
            )
    return KeySecret(secret, str(place.parent), place.name)


def variables(options: Options) -> Manifest:
    """Of a container."""
    secret = options.environment_secret
    return {} if secret is None else {"envFrom": [{"secretRef": {"name": secret}}]}


def key_mounts(options: Options) -> list[Manifest]:
    """Of a container."""
    return [] if options.key is None else [{"name": _VOLUME, "mountPath": options.key.folder, "readOnly": True}]


def key_volumes(options: Options) -> list[Manifest]:
    """Of a pod."""
    if options.key is None:
        return []
    items = [{"key": options.key.file, "path": options.key.file}]
    secret = {"secretName": options.key.secret, "defaultMode": READABLE_BY_GROUP, "items": items}
    return [{"name": _VOLUME, "secret": secret}]
