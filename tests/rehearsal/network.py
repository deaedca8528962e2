"""A bridge in a network namespace of its own, and a namespace with an address on it for each pod.

Each cluster has its own; the addresses are known within it alone and never meet this machine's.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
NODE_ADDRESS = "10.77.0.1"
_PODS = "10.77.0.{}"
_SERVICES = "10.77.1.{}"
_clusters = count()


@dataclass(frozen=True)
class Link:
    """A pod's namespace, its address, and its end of the cable on the bridge."""

    namespace: str
    address: str
    port: str


class Network:
    """The addresses of one cluster. `close` takes all of it away, processes excepted."""

    def __init__(self) -> None:
        self._name = f"rehearsal-{next(_clusters)}"
        self._pod_numbers = count(10)
        self._service_numbers = count(10)
        self._links: list[Link] = []
        _ip("netns", "add", self._name)
        _ip("-n", self._name, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._name, "address", "add", f"{NODE_ADDRESS}/24", "dev", "bridge")
        _ip("-n", self._name, "link", "set", "bridge", "up")

    def close(self) -> None:
        for link in [*self._links]:
            self.disconnect(link)
        _ip("netns", "delete", self._name)

    def connect(self) -> Link:
        """A new namespace with a new address on the bridge; addresses are not used again, as in most clusters."""
        number = next(self._pod_numbers)
        link = Link(f"{self._name}-{number}", _PODS.format(number), f"pod{number}")
        _ip("netns", "add", link.namespace)
        self._links.append(link)
        cable = ["link", "add", "eth0", "netns", link.namespace, "type", "veth"]
        _ip(*cable, "peer", "name", link.port, "netns", self._name)
        _ip("-n", self._name, "link", "set", link.port, "master", "bridge", "up")
        for line in (
            f"address add {link.address}/24 dev eth0",
            "link set lo up",
            "link set eth0 up",
            # Addresses of Services: turned into those of pods on the way out.
            f"route add {_SERVICES.format(0)}/24 dev eth0",
        ):
            _ip("-n", link.namespace, *line.split())
        return link

    def disconnect(self, link: Link) -> None:
        self._links.remove(link)
        _ip("netns", "delete", link.namespace)

    def cut(self, link: Link) -> None:
        """Pulls the cable: packets are lost, and neither side is told."""
        _ip("-n", self._name, "link", "set", link.port, "nomaster", "down")

    def service_address(self) -> str:
        return _SERVICES.format(next(self._service_numbers))

    @contextmanager
    def on_the_node(self) -> Iterator[None]:
        """Sockets that this thread makes meanwhile are on the bridge, as the kubelet's."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/ns/net") as own, (Path("/run/netns") / self._name).open() as node:
            _enter(libc, node.fileno())
            try:
                yield
            finally:
                _enter(libc, own.fileno())

    def load(self, link: Link, rules: Iterable[str]) -> None:
        """Makes these the packet rules of a pod's namespace, in the language of `nft`."""
        _run(["ip", "netns", "exec", link.namespace, "nft", "-f", "-"], "\n".join(["flush ruleset", *rules]) + "\n")


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: list[str], text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}\n{text or ''}")
