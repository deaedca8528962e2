"""Packet rules of a pod's network namespace: what NetworkPolicies let in and out, and Services' addresses turned into pods'.

The first is a network plug-in's work on a cluster, the second kube-proxy's; here both are rules of `nft` where the pod is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.rehearsal.names import endpoints, is_headless, matches
from tests.rehearsal.network import NODE_ADDRESS
from tests.rehearsal.pods import Pod, container_ports
from tests.rehearsal.volumes import Manifest

_SIDES = {"ingress": ("input", "saddr", "from"), "egress": ("output", "daddr", "to")}


def packet_rules(
    pod: Pod, policies: Sequence[Manifest], services: Sequence[Manifest], addresses: Mapping[str, str], pods: Sequence[Pod]
) -> list[str]:
    """The whole of a pod's rules, in the language of `nft`."""
    lines = ["table ip policies {"]
    for side, (hook, _, _) in _SIDES.items():
        ours = [policy for policy in policies if selects(policy, pod) and side in _types(policy)]
        lines.append(f"chain {hook} {{ type filter hook {hook} priority 0; policy {'drop' if ours else 'accept'};")
        name = "iifname" if side == "ingress" else "oifname"
        lines += [f"{name} lo accept", "ct state established,related accept"]
        lines += [f"ip saddr {NODE_ADDRESS} accept"] if side == "ingress" else []
        for policy in ours:
            for rule in policy["spec"].get(side, []):
                lines += _let_through(rule, side, policy, pod, pods)
        lines.append("}")
    return [*lines, "}", "table ip services {", *_proxy(services, addresses, pods), "}"]


def selects(policy: Manifest, pod: Pod) -> bool:
    """Whether a NetworkPolicy is about a pod."""
    return pod.namespace == policy["metadata"]["namespace"] and matches(policy["spec"]["podSelector"], pod.labels)


def _types(policy: Manifest) -> list[str]:
    spec = policy["spec"]
    usual = ["Ingress", "Egress"] if "egress" in spec else ["Ingress"]
    return [kind.lower() for kind in spec.get("policyTypes", usual)]


def _let_through(rule: Manifest, side: str, policy: Manifest, pod: Pod, pods: Sequence[Pod]) -> Iterator[str]:
    _, address, key = _SIDES[side]
    addresses = _peers(rule[key], policy, pods) if rule.get(key) else None
    if addresses == []:
        return
    who = f"ip {address} {{ {', '.join(sorted(addresses))} }} " if addresses is not None else ""
    for port in rule.get("ports") or [{}]:
        # Where a rule has ports they are those of who is called.
        known = container_ports(pod.spec) if side == "ingress" else {}
        yield f"{who}{_port(port, known)} accept"


def _port(port: Manifest, known: Mapping[str | int, int]) -> str:
    protocol = port.get("protocol", "TCP").lower()
    if "port" not in port:
        return f"meta l4proto {protocol}" if "protocol" in port else ""
    number = known.get(port["port"], port["port"])
    return f"{protocol} dport {number}" + (f"-{port['endPort']}" if "endPort" in port else "")


def _peers(peers: Sequence[Mapping[str, Any]], policy: Manifest, pods: Sequence[Pod]) -> list[str]:
    found = []
    for peer in peers:
        assert "ipBlock" not in peer, "ipBlock is not rehearsed"
        for pod in pods:
            labels = {"kubernetes.io/metadata.name": pod.namespace}
            where = peer.get("namespaceSelector")
            here = pod.namespace == policy["metadata"]["namespace"] if where is None else matches(where, labels)
            if here and matches(peer.get("podSelector", {}), pod.labels) and not pod.finished:
                found.append(pod.address)
    return found


def _proxy(services: Sequence[Manifest], addresses: Mapping[str, str], pods: Sequence[Pod]) -> Iterator[str]:
    """A Service's port goes to the first of its pods: there is one of TensorBoard's."""
    yield "chain output { type nat hook output priority -100;"
    for service in services:
        if is_headless(service):
            continue
        for pod in endpoints(service, pods)[:1]:
            for port in service["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                number = container_ports(pod.spec).get(target, target)
                address = addresses[service["metadata"]["name"]]
                yield f"ip daddr {address} tcp dport {port['port']} dnat to {pod.address}:{number}"
    yield "}"
