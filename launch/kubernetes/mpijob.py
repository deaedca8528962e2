"""An MPIJob (kubeflow.org, operator 0.6 and later), without MPI: the operator makes the pods and their names.

It knows no podFailurePolicy: every exit code of the launcher counts, and the operator starts it again `--restarts` times.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch.kubernetes.job import time_to_live
from launch.kubernetes.objects import Manifest, object_of, queued
from launch.kubernetes.options import Training
from launch.kubernetes.pod import worker_pod
from launch.kubernetes.volumes import Folders
from trainer.config import Config, TrainConfig


def render_mpijob(config: Config, training: Training, folders: Folders, overrides: Sequence[str]) -> list[Manifest]:
    """The MPIJob; its operator makes the Service.

    The launcher is worker 0. The operator makes worker pods once: their containers are started again where they are. Its
    Service names a pod only when it is ready, which no pod is before its init containers are done: so the doctor, who is in
    one, cannot meet the others, and looks at what falls on this pod.
    """
    options = training.job
    mpijob = queued(object_of("MPIJob", "kubeflow.org/v2beta1", options, component="worker"), options)

    def replicas(number: int, restart_policy: str) -> Manifest:
        template = worker_pod(training, folders, overrides, peers_of(training), [*overrides, *_share(config.train, training)])
        return {"replicas": number, "restartPolicy": restart_policy, "template": template}

    specs = {"Launcher": replicas(1, "Never")}
    if training.nodes > 1:
        specs["Worker"] = replicas(training.nodes - 1, "OnFailure")
    mpijob["spec"] = {
        "runLauncherAsWorker": True,
        "slotsPerWorker": training.ranks,
        "runPolicy": {
            "backoffLimit": options.restarts,
            "cleanPodPolicy": "Running",
            **({"suspend": True} if options.placement.queue is not None else {}),
            **time_to_live(options),
        },
        "mpiReplicaSpecs": specs,
    }
    return [mpijob]


def _share(train: TrainConfig, training: Training) -> list[str]:
    """A node's share of the batch, which as many ranks as it has divide as all ranks do the whole of it."""
    share = [f"train.global_batch_size={train.global_batch_size // training.nodes}"]
    if train.micro_batch_size is not None:
        share.append(f"train.micro_batch_size={train.micro_batch_size // training.nodes}")
    return [*share, "--workers", str(training.ranks)]


def peers_of(training: Training) -> list[str]:
    name = training.job.name
    return [f"{name}-launcher.{name}", *(f"{name}-worker-{index}.{name}" for index in range(training.nodes - 1))]
