"""Who may talk to whom: the workers with each other and with DNS, everyone in the namespace with TensorBoard."""

from __future__ import annotations

from launch.kubernetes.objects import Component, Manifest, object_of, selector_of
from launch.kubernetes.options import Options

HTTPS_PORT = 443
_DATABASE_PORTS = (5432, 3306)  # of PostgreSQL, and of MySQL
_NAMES = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}


def worker_policy(options: Options, *, to_storage: bool) -> Manifest:
    """All ports between the workers. `to_storage` opens HTTPS to everywhere, for checkpoints behind a URL."""
    workers = [{"podSelector": {"matchLabels": selector_of(options, "worker")}}]
    storage = [{"ports": [{"protocol": "TCP", "port": HTTPS_PORT}]}] if to_storage else []
    return _policy(options, "", "worker", [{"from": workers}], [{"to": workers}, _NAMES, *storage])


def tensorboard_policy(options: Options, port: int) -> Manifest:
    everyone: Manifest = {"podSelector": {}}
    ingress = [{"from": [everyone], "ports": [{"protocol": "TCP", "port": port}]}]
    return _policy(options, "-tensorboard", "tensorboard", ingress, [])


def prepare_policy(options: Options) -> Manifest:
    """Shards meet in the volume alone."""
    return _policy(options, "-prepare", "prepare", [], [])


def search_policy(options: Options, *, to_database: bool, to_storage: bool) -> Manifest:
    """Searching pods meet in the volume, or in a database. `to_storage` opens HTTPS to everywhere, as for workers."""
    ports = [*(_DATABASE_PORTS if to_database else ()), *([HTTPS_PORT] if to_storage else [])]
    egress = [_NAMES, {"ports": [{"protocol": "TCP", "port": port} for port in ports]}] if ports else []
    return _policy(options, "-search", "search", [], egress)


def _policy(options: Options, suffix: str, component: Component, ingress: list[Manifest], egress: list[Manifest]) -> Manifest:
    policy = object_of("NetworkPolicy", "networking.k8s.io/v1", options, suffix, component)
    policy["spec"] = {
        "podSelector": {"matchLabels": selector_of(options, component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return policy
