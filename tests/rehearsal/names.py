"""Which names stand for which addresses: the cluster's DNS, as lines of a file `hosts`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.rehearsal.pods import Pod
from tests.rehearsal.volumes import Manifest


def matches(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a label selector, of either of its two languages, takes something with these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_fulfils(labels, expression) for expression in selector.get("matchExpressions", []))


def is_headless(service: Manifest) -> bool:
    return service["spec"].get("clusterIP") == "None"


def endpoints(service: Manifest, pods: Iterable[Pod]) -> list[Pod]:
    """The pods behind a Service: those that it selects and that are ready, or all of them where it publishes the others too."""
    spec, namespace = service["spec"], service["metadata"]["namespace"]
    return [
        pod
        for pod in pods
        if not pod.finished
        and pod.namespace == namespace
        and matches({"matchLabels": spec["selector"]}, pod.labels)
        and (pod.ready or spec.get("publishNotReadyAddresses", False))
    ]


def find_names(services: Sequence[Manifest], addresses: Mapping[str, str], pods: Sequence[Pod]) -> list[str]:
    """A line for each name. A pod's own has to be asked for by a Service that is named as the pod's `subdomain`."""
    lines = []
    for service in services:
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        if not is_headless(service):
            lines.append(_line(addresses[name], _forms(name, namespace)))
            continue
        for pod in endpoints(service, pods):
            own = _forms(f"{pod.hostname}.{name}", namespace) if pod.subdomain == name else ()
            lines.append(_line(pod.address, [*own, *_forms(name, namespace)]))
    return lines


def _forms(name: str, namespace: str) -> Iterator[str]:
    """A name in full, and as the search path of `resolv.conf` lets it be shortened within its namespace."""
    for end in (f".{namespace}.svc.cluster.local", f".{namespace}.svc", f".{namespace}", ""):
        yield name + end


def _line(address: str, names: Iterable[str]) -> str:
    return f"{address} {' '.join(names)}"


def _fulfils(labels: Mapping[str, str], expression: Manifest) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise NotImplementedError(f"the operator {other} of a selector")
