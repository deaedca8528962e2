"""A pod, as the kubelet runs it: volumes, init containers one by one, the containers, probes, restarts, the grace period."""

from __future__ import annotations

import http.client
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.rehearsal.containers import Container, Image, Surroundings
from tests.rehearsal.environment import expand, make_environment
from tests.rehearsal.network import Link, Network
from tests.rehearsal.volumes import Manifest, Objects, make_volumes, release_volumes

Phase = Literal["Pending", "Running", "Succeeded", "Failed"]
# What is understood here, and what is for the scheduler, the runtime and the registry, which one machine has not.
_POD_KEYS = {"restartPolicy", "terminationGracePeriodSeconds", "securityContext", "automountServiceAccountToken", "hostname"}
_POD_KEYS |= {"enableServiceLinks", "subdomain", "initContainers", "containers", "volumes", "serviceAccountName"}
_POD_KEYS |= {"nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "imagePullSecrets", "priorityClassName"}
_CONTAINER_KEYS = {"name", "image", "command", "args", "workingDir", "env", "ports", "resources"}
_CONTAINER_KEYS |= {"volumeMounts", "securityContext", "readinessProbe", "startupProbe"}
_USUAL_GRACE_SECONDS = 30
# How long an answer may take, and how often is asked: more often than manifests say, so that nothing waits for it.
_PROBE_SECONDS = 1.0
# The kubelet waits 10 s before it starts a container again; nobody is waited for here but the test.
_RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class Node:
    """What a pod takes from the cluster that runs it."""

    network: Network
    objects: Objects
    image: Image
    directory: Path
    logs: Path
    service_links: Mapping[str, str]
    cpus: Sequence[int]


class Pod:
    """A pod that was created and is started. `exit_codes` are those of containers that have ended, the last one of each."""

    def __init__(self, name: str, namespace: str, template: Manifest, node: Node, annotations: Mapping[str, str]) -> None:
        self.name, self.namespace = name, namespace
        self.spec: Manifest = template["spec"]
        _refuse_the_unknown(self.spec)
        metadata = template.get("metadata", {})
        self.labels: dict[str, str] = dict(metadata.get("labels", {}))
        self.annotations = {**metadata.get("annotations", {}), **annotations}
        self.hostname: str = self.spec.get("hostname", name)
        self.subdomain: str | None = self.spec.get("subdomain")
        self.phase: Phase = "Pending"
        self.ready = False
        self.conditions: set[str] = set()
        self.exit_codes: dict[str, int] = {}
        self.num_restarts = 0
        self.deleted = False
        self._node = node
        self._init = [*self.spec.get("initContainers", [])]
        self._running: list[Container] = []
        self._logs: list[Path] = []
        self._kill_at = self._restart_at = self._probe_at = float("inf")
        self._link: Link = node.network.connect()
        directory = node.directory / name
        (directory / "etc").mkdir(parents=True)
        (directory / "volumes").mkdir()
        self._volumes = directory / "volumes"
        self._around = Surroundings(
            self.hostname,
            self._link,
            make_volumes(self.spec, namespace, node.objects, self._volumes),
            directory / "etc",
            node.cpus,
            self.spec.get("securityContext", {}),
            node.image,
        )
        self.write_hosts([])

    @property
    def address(self) -> str:
        return self._link.address

    @property
    def link(self) -> Link:
        return self._link

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def output(self) -> str:
        """What all its containers have said so far."""
        return "".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self._logs)

    @property
    def running(self) -> list[str]:
        return [container.name for container in self._running if container.exit_code is None]

    def processes(self) -> list[int]:
        return [container.process for container in self._running if container.process is not None]

    def write_hosts(self, names: Sequence[str]) -> None:
        """Makes these the names that the pod knows, in place: the file is mounted. One write, so no reader sees half of it."""
        own = f"{self.hostname}.{self.subdomain}.{self.namespace}.svc.cluster.local " if self.subdomain else ""
        lines = ["127.0.0.1 localhost", "::1 localhost", f"{self.address} {own}{self.hostname}", *names]
        path = self._around.etc / "hosts"
        content = "".join(f"{line}\n" for line in lines)
        before = path.stat().st_size if path.exists() else 0
        with path.open("r+" if before else "w") as file:
            # Blank lines take the place of what is no longer there; a shorter file would have a moment of its own.
            file.write(content + "\n" * max(0, before - len(content)))

    def step(self) -> None:
        """Looks after the pod; called again and again."""
        if self.finished:
            return
        now = time.monotonic()
        if now >= self._kill_at:
            self._kill_at = float("inf")
            self.kill()
        ended = [container for container in self._running if container.exit_code is not None]
        for container in ended:
            assert container.exit_code is not None
            self._running.remove(container)
            container.end()
            self.exit_codes[container.name] = container.exit_code
        if self.phase == "Pending":
            self._go_on_with_init(ended, now)
        elif ended and not self._running:
            self._after_the_containers(now)
        elif now >= self._restart_at:
            self._restart_at = float("inf")
            self._start_containers()
        if self.phase == "Running" and now >= self._probe_at:
            self._probe(now)

    def delete(self, because: str | None = None) -> None:
        """SIGTERM now, SIGKILL after the grace period. `because` becomes a condition of the pod."""
        if self.finished or self.deleted:
            return
        self.deleted = True
        self.ready = False
        if because:
            self.conditions.add(because)
        for container in self._running:
            container.send(signal.SIGTERM)
        self._kill_at = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", _USUAL_GRACE_SECONDS)

    def drain(self) -> None:
        """As `kubectl drain` does, or a preemption: a deletion of which the pod says that it is nobody's fault."""
        self.delete("DisruptionTarget")

    def kill(self) -> None:
        """Ends all its processes at once."""
        for container in self._running:
            container.kill()

    def cut(self) -> None:
        """Takes the pod off the network."""
        self._node.network.cut(self._link)

    def close(self) -> None:
        """Leaves nothing of it behind but its logs."""
        for container in self._running:
            container.end()
        if not self.finished:
            self._finish("Failed")

    def _go_on_with_init(self, ended: Sequence[Container], now: float) -> None:
        failed = [container for container in ended if container.exit_code]
        gives_up = bool(failed) and self.spec.get("restartPolicy", "Always") == "Never"
        if gives_up or (self.deleted and not self._running):
            self._finish("Failed")
        elif failed:
            self.num_restarts += 1
            self._restart_at = now + _RESTART_SECONDS
        elif not self._running and (self._restart_at == float("inf") or now >= self._restart_at):
            self._restart_at = float("inf")
            self._init = self._init[1:] if ended else self._init
            if self._init:
                self._running = [self._start(self._init[0])]
            else:
                self.phase = "Running"
                self._start_containers()

    def _start_containers(self) -> None:
        self._running = [self._start(container) for container in self.spec["containers"]]
        self._probe_at = time.monotonic()

    def _start(self, spec: Manifest) -> Container:
        environment = make_environment(spec, self, self._node.objects, self._node.service_links, self._node.image.environment)
        own = {name: value for name, value in environment.items() if name not in self._node.image.environment}
        own |= {each["name"]: environment[each["name"]] for each in spec.get("env", [])}
        assert spec.get("command"), f"container {spec['name']} has no command of its own; the image's is not known here"
        command = [expand(word, own) for word in [*spec["command"], *spec.get("args", [])]]
        log = self._node.logs / f"{self.name}.{spec['name']}.{self.num_restarts}.log"
        self._logs.append(log)
        return Container(spec, command, environment, self._around, log)

    def _after_the_containers(self, now: float) -> None:
        failed = any(self.exit_codes[container["name"]] for container in self.spec["containers"])
        policy = self.spec.get("restartPolicy", "Always")
        if not self.deleted and (policy == "Always" or (policy == "OnFailure" and failed)):
            self.ready = False
            self.num_restarts += 1
            self._restart_at = now + _RESTART_SECONDS
        else:
            self._finish("Failed" if failed else "Succeeded")

    def _finish(self, phase: Phase) -> None:
        self.phase = phase
        self.ready = False
        release_volumes(self._volumes)
        self._node.network.disconnect(self._link)

    def _probe(self, now: float) -> None:
        """Ready is a pod whose containers run and whose probes are content."""
        probes = [container[kind] for container in self.spec["containers"] for kind in _PROBES if kind in container]
        with self._node.network.on_the_node():
            ready = all(_ask(probe, self.address, container_ports(self.spec)) for probe in probes)
        self.ready = ready and not self.deleted
        self._probe_at = now + _PROBE_SECONDS if probes else float("inf")


_PROBES = ("startupProbe", "readinessProbe")


def container_ports(spec: Manifest) -> dict[str | int, int]:
    """The ports of a pod by their names; a number stands for itself."""
    ports = [port for container in spec["containers"] for port in container.get("ports", [])]
    return {key: port["containerPort"] for port in ports for key in (port["containerPort"], port.get("name"))}


def _ask(probe: Mapping[str, Any], address: str, ports: Mapping[str | int, int]) -> bool:
    where = probe.get("tcpSocket") or probe["httpGet"]
    port = ports.get(where["port"], where["port"])
    with suppress(OSError, http.client.HTTPException):
        if "tcpSocket" in probe:
            socket.create_connection((address, port), _PROBE_SECONDS).close()
            return True
        connection = http.client.HTTPConnection(address, port, timeout=_PROBE_SECONDS)
        connection.request("GET", where.get("path", "/"))
        return 200 <= connection.getresponse().status < 400
    return False


def _refuse_the_unknown(spec: Manifest) -> None:
    """A field that means nothing here would be rehearsed by being left out."""
    unknown = set(spec) - _POD_KEYS
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        unknown |= set(container) - _CONTAINER_KEYS
    if unknown:
        raise NotImplementedError(f"fields of a pod that the rehearsal does not know: {', '.join(sorted(unknown))}")
