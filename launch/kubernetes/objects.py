"""What all objects have: a name, a namespace, and labels by which they are found again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from launch.kubernetes.options import Options

Manifest: TypeAlias = "dict[str, Any]"
Component = Literal["worker", "tensorboard", "prepare", "search"]

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONFIG_KEY = "config.yaml"


def labels_of(options: Options, component: Component | None = None) -> dict[str, str]:
    """The labels that Kubernetes recommends (kubernetes.io/docs/concepts/overview/working-with-objects/common-labels)."""
    labels = {"app.kubernetes.io/name": "drumline", "app.kubernetes.io/instance": options.name}
    if component is not None:
        labels["app.kubernetes.io/component"] = component
    return {**labels, "app.kubernetes.io/managed-by": "drumline"}


def selector_of(options: Options, component: Component) -> dict[str, str]:
    """What chooses the pods of a component, and no others."""
    return {key: value for key, value in labels_of(options, component).items() if not key.endswith("managed-by")}


def object_of(kind: str, version: str, options: Options, suffix: str = "", component: Component | None = None) -> Manifest:
    """The beginning of an object named after the job."""
    metadata: Manifest = {"name": f"{options.name}{suffix}"}
    if options.namespace is not None:
        metadata["namespace"] = options.namespace
    metadata["labels"] = labels_of(options, component)
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def queued(workload: Manifest, options: Options) -> Manifest:
    """Hands a workload to Kueue, where a queue was given."""
    if options.placement.queue is not None:
        workload["metadata"]["labels"][QUEUE_LABEL] = options.placement.queue
    return workload


def config_map(options: Options, suffix: str, texts: Mapping[str, str]) -> Manifest:
    """The YAML of files as it is in them, by their names in the container."""
    return {**object_of("ConfigMap", "v1", options, suffix), "data": dict(texts)}
