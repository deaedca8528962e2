"""`drumline search` as an indexed Job: each pod takes trials until none is left."""

from __future__ import annotations

from collections.abc import Sequence

from launch.kubernetes.job import render_independent
from launch.kubernetes.network import search_policy
from launch.kubernetes.objects import CONFIG_KEY, Manifest, config_map
from launch.kubernetes.options import Searching
from launch.kubernetes.pod import CONFIG_PATH, CONFIG_SUFFIX, literal, placement_of, resources_of, run_mounts
from launch.kubernetes.secrets import key_mounts, key_volumes, variables
from launch.kubernetes.security import container_security, pod_security, temporary_environment
from launch.kubernetes.volumes import (
    CONFIG_FOLDER,
    WORKING_DIRECTORY,
    Folders,
    claim_volumes,
    find_folders,
    is_remote,
    new_claims,
)
from trainer.config import Config, SearchConfig
from trainer.errors import UserError

SUFFIX = "-search"
_CONFIG_SUFFIX = f"{SUFFIX}{CONFIG_SUFFIX}"
_SEARCH_KEY = "search.yaml"
_SEARCH_PATH = f"{CONFIG_FOLDER}/{_SEARCH_KEY}"


def render_search(
    search: SearchConfig, config: Config, texts: tuple[str, str], searching: Searching, overrides: Sequence[str]
) -> list[Manifest]:
    """`texts` are those of the search's file and of the configuration's, whose `run.directory` is the search's. Raises
    UserError where pods could not share the trials."""
    _require_sense(search, searching)
    options = searching.job
    folders = find_folders(config)
    to_database = search.storage_environment is not None or "://" in (search.storage or "")
    return [
        config_map(options, _CONFIG_SUFFIX, {_SEARCH_KEY: texts[0], CONFIG_KEY: texts[1]}),
        *new_claims(options, {"-data": options.data, "-runs": searching.runs}),
        search_policy(options, to_database=to_database, to_storage=is_remote(config.checkpoint.directory)),
        render_independent(options, SUFFIX, "search", searching.pods, _pod(search, searching, folders, overrides)),
    ]


def _require_sense(search: SearchConfig, searching: Searching) -> None:
    if search.storage is not None and search.storage.startswith("sqlite"):
        raise UserError(
            f"storage: got {search.storage}, which several machines cannot share; leave it out for a journal on the volume of "
            "the runs, or name a database"
        )
    if search.storage_environment is not None and searching.job.environment_secret is None:
        raise UserError(
            f"--environment-secret: got nothing, expected a Secret with the key {search.storage_environment}, which "
            "storage_environment names"
        )


def _pod(search: SearchConfig, searching: Searching, folders: Folders, overrides: Sequence[str]) -> Manifest:
    options = searching.job
    volumes, names = claim_volumes(data=options.data, runs=searching.runs)
    shared = search.storage is not None or search.storage_environment is not None
    journal = [] if shared else [f"storage=journal:{search.directory}/{search.name}/search.journal"]
    container = {
        "name": "search",
        "image": options.image,
        "command": literal(["drumline", "search", _SEARCH_PATH, f"config={CONFIG_PATH}", *journal, *overrides]),
        "workingDir": str(WORKING_DIRECTORY),
        "env": temporary_environment(),
        **variables(options),
        "resources": resources_of(options.resources),
        "securityContext": container_security(),
        "volumeMounts": [
            *run_mounts(folders, names),
            *key_mounts(options),
            {"name": "temporary", "mountPath": "/tmp"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    return {
        **pod_security(),
        **placement_of(options.placement, options),
        "terminationGracePeriodSeconds": searching.grace_seconds,
        "containers": [container],
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": searching.shared_memory}},
            *volumes,
            {"name": "configuration", "configMap": {"name": f"{options.name}{_CONFIG_SUFFIX}"}},
            *key_volumes(options),
            {"name": "temporary", "emptyDir": {}},
        ],
    }
