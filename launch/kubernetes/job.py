"""The plain indexed Job with its headless Service: needs nothing that a cluster does not have."""

from __future__ import annotations

from collections.abc import Sequence

from launch.kubernetes.objects import Component, Manifest, labels_of, object_of, queued, selector_of
from launch.kubernetes.options import Options, Training
from launch.kubernetes.pod import worker_pod
from launch.kubernetes.volumes import Folders
from launch.surroundings import DEFAULT_PORT
from trainer.errors import Diverged, HangDetected, Stopped, UserError


def render_job(training: Training, folders: Folders, overrides: Sequence[str]) -> list[Manifest]:
    """The Service by which the workers find each other, and the Job."""
    options = training.job
    job = queued(object_of("Job", "batch/v1", options, component="worker"), options)
    template = worker_pod(training, folders, overrides, peers_of(training))
    template["spec"] = {"subdomain": options.name, "restartPolicy": "Never", **template["spec"]}
    job["spec"] = {
        **indexed(options, training.nodes),
        # A gang leaves together, so that each of its failures counts once a node.
        "backoffLimit": options.restarts * training.nodes,
        "podFailurePolicy": failure_policy(),
        **time_to_live(options),
        "template": template,
    }
    return [_service(options), job]


def render_independent(options: Options, suffix: str, component: Component, size: int, pod: Manifest) -> Manifest:
    """An indexed Job whose pods have nothing to do with each other: each index has its own tries."""
    job = queued(object_of("Job", "batch/v1", options, suffix, component), options)
    job["spec"] = {
        **indexed(options, size),
        "backoffLimitPerIndex": options.restarts,
        "podFailurePolicy": failure_policy(),
        **time_to_live(options),
        "template": {
            "metadata": {"labels": labels_of(options, component)},
            "spec": {"restartPolicy": "Never", **pod},
        },
    }
    return job


def peers_of(training: Training) -> list[str]:
    """The host names of an indexed Job's pods, as the Service has them."""
    name = training.job.name
    return [f"{name}-{index}.{name}" for index in range(training.nodes)]


def indexed(options: Options, size: int) -> Manifest:
    """An index's next pod starts only when the last one has ended: two of them would write into one folder."""
    suspended = {"suspend": True} if options.placement.queue is not None else {}
    return {
        "completionMode": "Indexed",
        "completions": size,
        "parallelism": size,
        **suspended,  # Kueue lets it start
        "podReplacementPolicy": "Failed",
    }


def time_to_live(options: Options) -> Manifest:
    ttl_seconds = options.placement.ttl_seconds
    return {} if ttl_seconds is None else {"ttlSecondsAfterFinished": ttl_seconds}


def failure_policy() -> Manifest:
    """Exit codes as `trainer.errors` has them, of any container: what would only fail again ends the Job at once, what was
    stopped or disrupted is started again, and all else counts."""

    def on_exit_codes(action: str, *codes: int) -> Manifest:
        return {"action": action, "onExitCodes": {"operator": "In", "values": sorted(codes)}}

    return {
        "rules": [
            on_exit_codes("FailJob", UserError.exit_code, Diverged.exit_code),
            on_exit_codes("Ignore", Stopped.exit_code),
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            on_exit_codes("Count", HangDetected.exit_code),
        ]
    }


def _service(options: Options) -> Manifest:
    """Names the workers also before they are ready: they look for each other while they start."""
    service = object_of("Service", "v1", options, component="worker")
    service["spec"] = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector_of(options, "worker"),
        "ports": [{"name": "rendezvous", "port": DEFAULT_PORT}],
    }
    return service
