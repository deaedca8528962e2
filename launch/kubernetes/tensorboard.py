"""TensorBoard beside the run, for those in the cluster: a Deployment and a Service of type ClusterIP."""

from __future__ import annotations

from launch.kubernetes.network import tensorboard_policy
from launch.kubernetes.objects import Manifest, labels_of, object_of, selector_of
from launch.kubernetes.options import Resources, Training
from launch.kubernetes.pod import image_pull_secrets, resources_of
from launch.kubernetes.security import container_security, pod_security, temporary_environment
from launch.kubernetes.volumes import WORKING_DIRECTORY, Folders, claim_volumes
from trainer.config import Config

SUFFIX = "-tensorboard"
PORT = 6006

_RESOURCES = Resources(cpus="1", memory="2Gi")


def render_tensorboard(config: Config, training: Training, folders: Folders) -> list[Manifest]:
    options = training.job
    deployment = object_of("Deployment", "apps/v1", options, SUFFIX, "tensorboard")
    deployment["spec"] = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": selector_of(options, "tensorboard")},
        "template": {"metadata": {"labels": labels_of(options, "tensorboard")}, "spec": _pod(config, training, folders)},
    }
    service = object_of("Service", "v1", options, SUFFIX, "tensorboard")
    service["spec"] = {
        "type": "ClusterIP",
        "selector": selector_of(options, "tensorboard"),
        "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
    }
    return [deployment, service, tensorboard_policy(options, PORT)]


def _pod(config: Config, training: Training, folders: Folders) -> Manifest:
    options = training.job
    volumes, names = claim_volumes(runs=training.runs)
    # Relative to the working directory unless it is absolute, as for the run itself.
    logs = WORKING_DIRECTORY / config.run.directory / config.run.name / "tensorboard"
    container = {
        "name": "tensorboard",
        "image": options.image,
        "command": ["tensorboard", "--logdir", str(logs), "--bind_all", "--port", str(PORT)],
        "workingDir": str(WORKING_DIRECTORY),
        "env": temporary_environment(),
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5},
        "resources": resources_of(_RESOURCES),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": names["runs"], "mountPath": str(folders.runs), "readOnly": True},
            {"name": "temporary", "mountPath": "/tmp"},
        ],
    }
    return {
        **pod_security(),
        **image_pull_secrets(options),
        "containers": [container],
        "volumes": [*volumes, {"name": "temporary", "emptyDir": {}}],
    }
