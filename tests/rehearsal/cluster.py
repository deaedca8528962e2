"""The cluster: the objects of manifests, the pods made for them, and the loop that looks after all of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tests.rehearsal.containers import Image
from tests.rehearsal.controllers import DeploymentController, JobController, JobSetController, MPIJobController
from tests.rehearsal.environment import service_links
from tests.rehearsal.names import find_names, is_headless
from tests.rehearsal.network import Network
from tests.rehearsal.pods import Node, Pod
from tests.rehearsal.privacy import mount_memory, unmount
from tests.rehearsal.traffic import packet_rules
from tests.rehearsal.volumes import Manifest, parse_quantity

_KINDS_WITHOUT_PODS = {"ConfigMap", "Secret", "Service", "PersistentVolumeClaim", "NetworkPolicy"}
_STEP_SECONDS = 0.03
# DNS lags behind the pods: CoreDNS hears of a change a moment later, and caches what it said before.
_NAME_DELAY_SECONDS = 0.5


class Controller(Protocol):
    """What keeps the pods of an object as the object wants them. `outcome` is None while it goes on."""

    outcome: str | None

    def step(self) -> None: ...


_CONTROLLERS: dict[str, Callable[[Cluster, Manifest], Controller]] = {
    "Job": JobController,
    "Deployment": DeploymentController,
    "JobSet": JobSetController,
    "MPIJob": MPIJobController,
}


@dataclass(frozen=True)
class _Key:
    kind: str
    namespace: str
    name: str


class Cluster:
    """While entered, a cluster. `directory` takes the logs, `Cluster.claims` say which folder of this machine a claim is."""

    def __init__(self, directory: Path, claims: Mapping[str, Path] | None = None) -> None:
        self.claims: dict[str, Path] = dict(claims or {})
        self.pods: list[Pod] = []
        self.controllers: dict[str, Controller] = {}
        self._objects: dict[_Key, Manifest] = {}
        self._addresses: dict[str, str] = {}
        self._directory = directory
        self._names: list[str] = []
        self._published: list[str] = []
        self._to_publish: list[tuple[float, list[str]]] = []
        self._rules: dict[str, list[str]] = {}
        self._cpus = sorted(os.sched_getaffinity(0))
        self._next_cpu = 0
        self._closing = ExitStack()

    def __enter__(self) -> Cluster:
        self._memory = self._directory / "node"
        self._memory.mkdir()
        (self._directory / "logs").mkdir()
        mount_memory(self._memory, "mode=0755")
        self._closing.callback(unmount, self._memory)
        self.network = Network()
        self._closing.callback(self.network.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._closing:
            for pod in self.pods:
                self._closing.callback(pod.close)

    def describe(self) -> str:
        """What each pod was and said, the end of it."""
        return "\n".join(
            f"=== {pod.name}: {pod.phase}, {pod.exit_codes} {sorted(pod.conditions)}\n{pod.output[-4000:]}" for pod in self.pods
        )

    def apply(self, manifests: Iterable[Manifest]) -> None:
        """As `kubectl apply`, for objects that are new."""
        for manifest in manifests:
            kind, metadata = manifest["kind"], manifest["metadata"]
            key = _Key(kind, metadata.get("namespace", "default"), metadata["name"])
            assert key not in self._objects, f"{key} is there already"
            self._objects[key] = {**manifest, "metadata": {**metadata, "namespace": key.namespace}}
            if kind == "PersistentVolumeClaim":
                self.claims[key.name] = self._directory / "claims" / key.name
                self.claims[key.name].mkdir(parents=True)
            elif kind == "Service" and not is_headless(manifest):
                self._addresses[key.name] = self.network.service_address()
            elif kind in _CONTROLLERS:
                self.controllers[key.name] = _CONTROLLERS[kind](self, self._objects[key])
            elif kind == "Pod":
                self.create_pod(key.name, key.namespace, manifest)
            elif kind not in _KINDS_WITHOUT_PODS:
                raise NotImplementedError(f"objects of kind {kind}")

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Forgets an object; its pods are the controller's affair."""
        del self._objects[_Key(kind, namespace, name)]
        self.controllers.pop(name, None)

    def find(self, kind: str, namespace: str, name: str) -> Manifest:
        return self._objects[_Key(kind, namespace, name)]

    def claim(self, namespace: str, name: str) -> Path:
        """The folder of a claim, which is the same for each pod: all claims are ReadWriteMany here."""
        return self.claims[name]

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for key, manifest in self._objects.items() if key.kind == kind]

    def create_pod(self, name: str, namespace: str, template: Manifest, annotations: Mapping[str, str] | None = None) -> Pod:
        services = [each for each in self.of_kind("Service") if each["metadata"]["namespace"] == namespace]
        links = service_links(services, self._addresses) if template["spec"].get("enableServiceLinks", True) else {}
        logs = self._directory / "logs"
        cpus = self._take_cpus(template["spec"])
        node = Node(self.network, self, Image(), self._memory, logs, links, cpus)
        pod = Pod(name, namespace, template, node, annotations or {})
        pod.write_hosts(self._published)
        self.pods.append(pod)
        return pod

    def step(self) -> None:
        """One round of everything that a cluster does by itself."""
        for controller in [*self.controllers.values()]:
            controller.step()
        self._publish_names()
        self._load_rules()
        for pod in self.pods:
            pod.step()

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Keeps the cluster going until the condition holds; fails where that takes longer."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            self.step()
            time.sleep(_STEP_SECONDS)

    def wait_for_outcome(self, name: str, seconds: float) -> str:
        """What became of a Job or the like: "Complete", or why it failed."""
        self.wait_until(lambda: self.controllers[name].outcome is not None, seconds, f"the end of {name}")
        return str(self.controllers[name].outcome)

    def newest(self, hostname: str) -> Pod:
        """The last pod of this host name, whatever has become of it."""
        return [pod for pod in self.pods if pod.hostname == hostname][-1]

    def active(self, hostname: str) -> Pod:
        """The pod of this host name that has not ended."""
        (pod,) = [pod for pod in self.pods if pod.hostname == hostname and not pod.finished]
        return pod

    def knows(self, name: str) -> bool:
        """Whether a name stands for an address by now."""
        return any(name in line.split()[1:] for line in self._published)

    def processes(self) -> list[int]:
        """The process 1 of each container, by its number outside."""
        return [process for pod in self.pods for process in pod.processes()]

    def _publish_names(self) -> None:
        now = time.monotonic()
        names = find_names(self.of_kind("Service"), self._addresses, self.pods)
        if names != self._names:
            self._names = names
            self._to_publish.append((now + _NAME_DELAY_SECONDS, names))
        while self._to_publish and self._to_publish[0][0] <= now:
            _, self._published = self._to_publish.pop(0)
            for pod in self.pods:
                if not pod.finished:
                    pod.write_hosts(self._published)

    def _load_rules(self) -> None:
        policies, services = self.of_kind("NetworkPolicy"), self.of_kind("Service")
        for pod in self.pods:
            if pod.finished:
                continue
            rules = packet_rules(pod, policies, services, self._addresses, self.pods)
            if self._rules.get(pod.name) != rules:
                self._rules[pod.name] = rules
                self.network.load(pod.link, rules)

    def _take_cpus(self, spec: Manifest) -> Sequence[int]:
        """A pod that asks for whole CPUs is kept to as many, as by the kubelet's static policy; they are shared in turn."""
        asked = 0.0
        for container in spec["containers"]:
            resources = container.get("resources", {})
            limit = resources.get("limits", {}).get("cpu")
            if limit is None or resources.get("requests", {}).get("cpu", limit) != limit:
                return self._cpus
            asked += parse_quantity(limit)
        if asked != int(asked) or asked >= len(self._cpus):
            return self._cpus
        taken = [self._cpus[(self._next_cpu + each) % len(self._cpus)] for each in range(int(asked))]
        self._next_cpu += int(asked)
        return taken
