"""`drumline prepare` as an indexed Job: each pod makes one shard of the store, and the last one that is done merges them."""

from __future__ import annotations

from collections.abc import Sequence

from launch.kubernetes.job import render_independent
from launch.kubernetes.network import prepare_policy
from launch.kubernetes.objects import CONFIG_KEY, Manifest, config_map
from launch.kubernetes.options import Preparation, amount
from launch.kubernetes.pod import CONFIG_PATH, CONFIG_SUFFIX, literal, placement_of, resources_of
from launch.kubernetes.secrets import key_mounts, key_volumes, variables
from launch.kubernetes.security import container_security, pod_security, temporary_environment
from launch.kubernetes.volumes import (
    CONFIG_FOLDER,
    WORKING_DIRECTORY,
    Folders,
    claim_volumes,
    find_folders,
    new_claims,
    require_inputs,
)
from trainer.config import Config

SUFFIX = "-prepare"
_CONFIG_SUFFIX = f"{SUFFIX}{CONFIG_SUFFIX}"


def render_prepare(config: Config, text: str, preparation: Preparation, overrides: Sequence[str]) -> list[Manifest]:
    """Raises UserError where an input would not be on the data volume."""
    options = preparation.job
    folders = find_folders(config)
    require_inputs(config, folders)
    return [
        config_map(options, _CONFIG_SUFFIX, {CONFIG_KEY: text}),
        *new_claims(options, {"-data": options.data}),
        prepare_policy(options),
        render_independent(options, SUFFIX, "prepare", preparation.shards, _pod(preparation, folders, overrides)),
    ]


def _pod(preparation: Preparation, folders: Folders, overrides: Sequence[str]) -> Manifest:
    options = preparation.job
    volumes, names = claim_volumes(data=options.data)
    num_processes = max(1, int(amount(options.resources.cpus)))
    # Kubernetes puts in the index, from 0; `prepare` takes shard 0 for the last one.
    shard = ["--shard", f"$(JOB_COMPLETION_INDEX)/{preparation.shards}"]
    container = {
        "name": "prepare",
        "image": options.image,
        "command": [
            *["drumline", "prepare", CONFIG_PATH, *shard, "--merge", "--processes", str(num_processes)],
            *literal(overrides),
        ],
        "workingDir": str(WORKING_DIRECTORY),
        "env": temporary_environment(),
        **variables(options),
        "resources": resources_of(options.resources),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": names["data"], "mountPath": str(folders.data)},
            {"name": "configuration", "mountPath": CONFIG_FOLDER, "readOnly": True},
            *key_mounts(options),
            {"name": "temporary", "mountPath": "/tmp"},
        ],
    }
    return {
        **pod_security(),
        **placement_of(options.placement, options),
        "containers": [container],
        "volumes": [
            *volumes,
            {"name": "configuration", "configMap": {"name": f"{options.name}{_CONFIG_SUFFIX}"}},
            *key_volumes(options),
            {"name": "temporary", "emptyDir": {}},
        ],
    }
