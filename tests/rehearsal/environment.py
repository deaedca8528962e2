"""What a container finds in its environment, and what $(NAME) in its command stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tests.rehearsal.volumes import Manifest, Objects, secret_values

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_NODE = "node"


class Described(Protocol):
    """What the downward API tells of a pod."""

    name: str
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def address(self) -> str: ...


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces $(NAME) where the variable is known, and $$ by $, as the kubelet does (third_party/forked/golang/expansion)."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def service_links(services: Sequence[Manifest], addresses: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell of each Service with an address of its own: a Service named `drumline` sets DRUMLINE_PORT."""
    variables: dict[str, str] = {}
    for service in services:
        name = service["metadata"]["name"]
        if name not in addresses:
            continue
        prefix, address = name.upper().replace("-", "_"), addresses[name]
        ports = service["spec"]["ports"]
        variables |= {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(ports[0]["port"])}
        variables[f"{prefix}_PORT"] = f"tcp://{address}:{ports[0]['port']}"
        for port in ports:
            one = f"{prefix}_PORT_{port['port']}_TCP"
            variables |= {one: f"tcp://{address}:{port['port']}", f"{one}_PROTO": "tcp"}
            variables |= {f"{one}_PORT": str(port["port"]), f"{one}_ADDR": address}
    return variables


def make_environment(
    container: Manifest, pod: Described, objects: Objects, given: Mapping[str, str], image: Mapping[str, str]
) -> dict[str, str]:
    """The image's variables, those of Services (`given`), and the container's own, of which later ones may use earlier ones."""
    assert "envFrom" not in container, "envFrom is not rehearsed"
    # The image's are the runtime's affair: the kubelet knows nothing of them when it expands.
    own: dict[str, str] = {}
    for variable in container.get("env", []):
        if "valueFrom" in variable:
            own[variable["name"]] = _look_up(variable["valueFrom"], pod, objects)
        else:
            own[variable["name"]] = expand(variable.get("value", ""), {**given, **own})
    return {**image, **given, **own}


def _look_up(source: Mapping[str, Any], pod: Described, objects: Objects) -> str:
    ((kind, where),) = source.items()
    match kind:
        case "fieldRef":
            return _field(where["fieldPath"], pod)
        case "secretKeyRef":
            return secret_values(objects.find("Secret", pod.namespace, where["name"]))[where["key"]].decode()
        case "configMapKeyRef":
            return str(objects.find("ConfigMap", pod.namespace, where["name"])["data"][where["key"]])
        case _:
            raise NotImplementedError(f"a variable from {kind}")


def _field(path: str, pod: Described) -> str:
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return (pod.labels if match[1] == "labels" else pod.annotations).get(match[2], "")
    fields = {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "status.podIP": pod.address,
        "spec.nodeName": _NODE,
    }
    return fields[path]
