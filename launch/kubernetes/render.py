"""Config and options -> the objects of a training, in the order in which they are made. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launch.kubernetes.job import render_job
from launch.kubernetes.jobset import render_jobset
from launch.kubernetes.mpijob import render_mpijob
from launch.kubernetes.network import worker_policy
from launch.kubernetes.objects import CONFIG_KEY, Manifest, config_map, object_of
from launch.kubernetes.options import Training, amount
from launch.kubernetes.pod import CONFIG_SUFFIX, SECRET_KEY
from launch.kubernetes.tensorboard import render_tensorboard
from launch.kubernetes.volumes import find_folders, is_remote, new_claims
from trainer.config import Config, plan_batches
from trainer.errors import BackendError, UserError


def render(config: Config, text: str, training: Training, overrides: Sequence[str]) -> list[Manifest]:
    """`text` is that of the configuration's file. Raises UserError where the run could not work as it is asked for."""
    _require_sense(config, training)
    folders = find_folders(config)
    match training.kind:
        case "job":
            workers = render_job(training, folders, overrides)
        case "jobset":
            workers = render_jobset(training, folders, overrides)
        case "mpijob":
            workers = render_mpijob(config, training, folders, overrides)
    options = training.job
    return [
        config_map(options, CONFIG_SUFFIX, {CONFIG_KEY: text}),
        *_secret(training),
        *new_claims(options, {"-data": options.data, "-runs": training.runs}),
        worker_policy(options, to_storage=is_remote(config.checkpoint.directory)),
        *workers,
        *(render_tensorboard(config, training, folders) if training.tensorboard else ()),
    ]


def _require_sense(config: Config, training: Training) -> None:
    num_ranks, resources = training.nodes * training.ranks, training.job.resources
    if config.distribution.backend == "mirrored" or (config.distribution.backend == "single" and num_ranks > 1):
        raise BackendError(
            f"distribution.backend: got {config.distribution.backend} for {num_ranks} ranks in {training.nodes} pods, expected "
            "auto, horovod or multiworker"
        )
    plan_batches(config.train, num_ranks)
    if resources.gpus and training.ranks > resources.gpus:
        raise UserError(
            f"--ranks-per-node: got {training.ranks}, expected at most {resources.gpus}, a GPU of --gpus-per-node each"
        )
    if amount(training.shared_memory) >= amount(resources.memory):
        raise UserError(
            f"--shared-memory: got {training.shared_memory}, which is part of --memory, {resources.memory}; "
            "expected less than that, by as much as the ranks need"
        )


def _secret(training: Training) -> Iterator[Manifest]:
    if training.secret.token is not None:
        secret = object_of("Secret", "v1", training.job, "-secret")
        yield {**secret, "type": "Opaque", "data": {SECRET_KEY: training.secret.token}}
