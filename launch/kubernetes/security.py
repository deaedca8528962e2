"""What makes a pod satisfy the `restricted` Pod Security Standard, and what goes beyond it: a root file system that nobody
can write to, and no token for the cluster's API (kubernetes.io/docs/concepts/security/pod-security-standards)."""

from __future__ import annotations

from launch.kubernetes.objects import Manifest

USER = 1000  # k8s/Dockerfile makes it


def pod_security() -> Manifest:
    """Fields of a pod's `spec`. New files in volumes belong to the group; it is given what is in them only where the
    volume's root is not its own yet, since going through a large store takes minutes."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def temporary_environment() -> list[Manifest]:
    """Where programs write what nobody keeps."""
    return [{"name": "HOME", "value": "/tmp"}, {"name": "TMPDIR", "value": "/tmp"}]
