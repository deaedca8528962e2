"""A JobSet (jobset.sigs.k8s.io, 0.8 and later): its controller brings the whole gang back when one worker fails."""

from __future__ import annotations

from collections.abc import Sequence

from launch.kubernetes.job import failure_policy, indexed, time_to_live
from launch.kubernetes.objects import Manifest, labels_of, object_of, queued
from launch.kubernetes.options import Training
from launch.kubernetes.pod import worker_pod
from launch.kubernetes.volumes import Folders

WORKERS = "workers"


def render_jobset(training: Training, folders: Folders, overrides: Sequence[str]) -> list[Manifest]:
    """The JobSet; its controller makes the Service.

    The first failure that counts ends the child Job, and with it the attempt; the next one begins when nothing of it is
    left. A child Job that its podFailurePolicy ends is not tried again.
    """
    options = training.job
    jobset = queued(object_of("JobSet", "jobset.x-k8s.io/v1alpha2", options, component="worker"), options)
    child = indexed(options, training.nodes)
    suspended = {"suspend": child.pop("suspend")} if "suspend" in child else {}
    template = worker_pod(training, folders, overrides, peers_of(training))
    template["spec"] = {"restartPolicy": "Never", **template["spec"]}
    jobset["spec"] = {
        **suspended,
        **time_to_live(options),
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": options.name},
        "failurePolicy": {
            "maxRestarts": options.restarts,
            "restartStrategy": "BlockingRecreate",
            "rules": [{"name": "hopeless", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [
            {
                "name": WORKERS,
                "replicas": 1,
                "template": {
                    "metadata": {"labels": labels_of(options, "worker")},
                    "spec": {**child, "backoffLimit": 0, "podFailurePolicy": failure_policy(), "template": template},
                },
            }
        ],
    }
    return [jobset]


def peers_of(training: Training) -> list[str]:
    name = training.job.name
    return [f"{name}-{WORKERS}-0-{index}.{name}" for index in range(training.nodes)]
