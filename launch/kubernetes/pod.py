"""The pod of one worker: the checks before it starts, the worker itself, and all that both have around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch import surroundings
from launch.kubernetes.objects import CONFIG_KEY, Manifest, labels_of, selector_of
from launch.kubernetes.options import Options, Placement, Resources, Toleration, Training
from launch.kubernetes.secrets import READABLE_BY_GROUP, key_mounts, key_volumes, variables
from launch.kubernetes.security import container_security, pod_security, temporary_environment
from launch.kubernetes.volumes import CONFIG_FOLDER, SECRET_FOLDER, WORKING_DIRECTORY, Folders, claim_volumes

CONFIG_PATH = f"{CONFIG_FOLDER}/{CONFIG_KEY}"
CONFIG_SUFFIX = "-configuration"  # the MPI operator makes a ConfigMap NAME-config of its own
SECRET_KEY = "token"

GPU = "nvidia.com/gpu"


def worker_pod(
    training: Training,
    folders: Folders,
    overrides: Sequence[str],
    peers: Sequence[str],
    checks: Sequence[str] | None = None,
) -> Manifest:
    """The template of a worker's pod. `checks` are what the doctor is given; by default it meets the doctors of the others."""
    options = training.job
    volumes, names = claim_volumes(data=options.data, runs=training.runs)
    around = {
        "workingDir": str(WORKING_DIRECTORY),
        "env": _environment(training, peers),
        **variables(options),
        "resources": resources_of(options.resources),
        "securityContext": container_security(),
        "volumeMounts": [
            *run_mounts(folders, names),
            *key_mounts(options),
            {"name": "secret", "mountPath": SECRET_FOLDER, "readOnly": True},
            {"name": "temporary", "mountPath": "/tmp"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    doctor = ["drumline", "doctor", CONFIG_PATH, *(checks or ["--gang", *overrides])]
    worker = ["drumline", "launch", "worker", CONFIG_PATH, *overrides]
    spec: Manifest = {
        **pod_security(),
        **placement_of(options.placement, options),
        "terminationGracePeriodSeconds": training.grace_seconds,
        "initContainers": [{"name": "doctor", "image": options.image, "command": literal(doctor), **around}],
        "containers": [{"name": "worker", "image": options.image, "command": literal(worker), **around}],
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": training.shared_memory}},
            *volumes,
            {"name": "configuration", "configMap": {"name": f"{options.name}{CONFIG_SUFFIX}"}},
            *key_volumes(options),
            {"name": "secret", "secret": {"secretName": training.secret.name, "defaultMode": READABLE_BY_GROUP}},
            {"name": "temporary", "emptyDir": {}},
        ],
    }
    if options.resources.gpus:
        spec["affinity"] = _one_a_node(options)
    return {"metadata": {"labels": labels_of(options, "worker")}, "spec": spec}


def run_mounts(folders: Folders, names: Mapping[str, str]) -> list[Manifest]:
    """What a container that trains has of the two volumes, whose `names` are by what is on them, and of the ConfigMap."""
    return [
        {"name": names["data"], "mountPath": str(folders.data), "readOnly": True},
        {"name": names["runs"], "mountPath": str(folders.runs)},
        {"name": "configuration", "mountPath": CONFIG_FOLDER, "readOnly": True},
    ]


def _environment(training: Training, peers: Sequence[str]) -> list[Manifest]:
    """What `launch.surroundings` reads."""
    variables = {
        surroundings.PEERS: ",".join(peers),
        surroundings.RANKS: str(training.ranks),
        surroundings.JOB: training.job.name,
        surroundings.SECRET_FILE: f"{SECRET_FOLDER}/{SECRET_KEY}",
    }
    return [*({"name": name, "value": value} for name, value in variables.items()), *temporary_environment()]


def literal(command: Sequence[str]) -> list[str]:
    """A command whose words Kubernetes takes as they are: it would put a variable's value for `$(NAME)`."""
    return [word.replace("$(", "$$(") for word in command]


def resources_of(resources: Resources) -> Manifest:
    """Limits equal requests, so that the pod is the last to be evicted (QoS class Guaranteed)."""
    amounts = {"cpu": resources.cpus, "memory": resources.memory}
    if resources.gpus:
        amounts[GPU] = str(resources.gpus)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def placement_of(placement: Placement, options: Options) -> Manifest:
    """Fields of a pod's `spec`."""
    fields: Manifest = image_pull_secrets(options)
    if placement.priority_class is not None:
        fields["priorityClassName"] = placement.priority_class
    if placement.node_selector:
        fields["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        fields["tolerations"] = [_toleration(each) for each in placement.tolerations]
    return fields


def image_pull_secrets(options: Options) -> Manifest:
    secret = options.image_pull_secret
    return {"imagePullSecrets": [{"name": secret}]} if secret is not None else {}


def _toleration(toleration: Toleration) -> Manifest:
    fields = {"key": toleration.key, "operator": "Exists" if toleration.value is None else "Equal"}
    if toleration.value is not None:
        fields["value"] = toleration.value
    if toleration.effect is not None:
        fields["effect"] = toleration.effect
    return fields


def _one_a_node(options: Options) -> Manifest:
    """Two pods of the job on one node would share what carries its gradients, and most of the time its GPUs' slots."""
    term = {
        "labelSelector": {"matchLabels": selector_of(options, "worker")},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
