"""A pod's volumes as folders of this machine, with the owner, group and modes that the kubelet gives them."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.rehearsal.privacy import mount_memory, unmount

Manifest = Mapping[str, Any]
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class Objects(Protocol):
    """Where volumes find what they are made of."""

    def find(self, kind: str, namespace: str, name: str) -> Manifest: ...

    def claim(self, namespace: str, name: str) -> Path: ...


@dataclass(frozen=True)
class Volume:
    path: Path
    read_only: bool = False


def parse_quantity(text: str | int) -> float:
    """Kubernetes' numbers: 500m, 2, 8Gi."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert match is not None, f"{text!r} is no quantity"
    return float(match[1]) / 1000 if match[2] == "m" else float(match[1]) * _UNITS[match[2]]


def make_volumes(pod_spec: Manifest, namespace: str, objects: Objects, directory: Path) -> dict[str, Volume]:
    """Each volume of a pod by its name; those that live as long as the pod are made in `directory`."""
    security = pod_spec.get("securityContext", {})
    group, always = security.get("fsGroup"), security.get("fsGroupChangePolicy", "Always") == "Always"
    made = {}
    for volume in pod_spec.get("volumes", []):
        (source,) = [key for key in volume if key != "name"]
        path = directory / volume["name"]
        match source:
            case "configMap":
                content = objects.find("ConfigMap", namespace, volume[source]["name"])
                made[volume["name"]] = _write_files(path, _texts(content), volume[source], group)
            case "secret":
                content = objects.find("Secret", namespace, volume[source]["secretName"])
                made[volume["name"]] = _write_files(path, secret_values(content), volume[source], group)
            case "persistentVolumeClaim":
                claim = objects.claim(namespace, volume[source]["claimName"])
                if group is not None and (always or claim.stat().st_gid != group):
                    _hand_over(claim, group)
                made[volume["name"]] = Volume(claim, volume[source].get("readOnly", False))
            case "emptyDir":
                made[volume["name"]] = _make_empty(path, volume[source] or {}, group)
            case _:
                raise NotImplementedError(f"a volume of kind {source}")
    return made


def release_volumes(directory: Path) -> None:
    """Unmounts what `make_volumes` mounted."""
    for path in directory.iterdir():
        if path.is_mount():
            unmount(path)


def secret_values(secret: Manifest) -> dict[str, bytes]:
    encoded = {key: base64.b64decode(value) for key, value in secret.get("data", {}).items()}
    return encoded | {key: value.encode() for key, value in secret.get("stringData", {}).items()}


def _texts(config_map: Manifest) -> dict[str, bytes]:
    return {key: text.encode() for key, text in config_map.get("data", {}).items()}


def _write_files(path: Path, contents: Mapping[str, bytes], source: Manifest, group: int | None) -> Volume:
    path.mkdir()
    items = source.get("items") or [{"key": key, "path": key} for key in contents]
    for item in items:
        target = path / item["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents[item["key"]])
        mode = item.get("mode", source.get("defaultMode", 0o644))
        if group is not None:  # pkg/volume/volume_linux.go: what the owner may read the group may read
            os.chown(target, 0, group)
            mode |= 0o440
        target.chmod(mode)
    path.chmod(0o755)
    return Volume(path, read_only=True)


def _make_empty(path: Path, source: Manifest, group: int | None) -> Volume:
    path.mkdir()
    if source.get("medium") == "Memory":
        size = f",size={int(parse_quantity(source['sizeLimit']))}" if "sizeLimit" in source else ""
        mount_memory(path, f"mode=0777{size}")
    path.chmod(0o777)
    if group is not None:
        _hand_over(path, group)
    return Volume(path)


def _hand_over(path: Path, group: int) -> None:
    """Gives a volume to the pod's `fsGroup`, with all that is in it, as the kubelet does when it mounts it."""
    for folder, _, files in os.walk(path):
        os.chown(folder, -1, group)
        os.chmod(folder, os.stat(folder).st_mode | 0o2770)
        for name in files:
            file = os.path.join(folder, name)
            with suppress(FileNotFoundError):  # another pod's temporary file
                os.chown(file, -1, group)
                os.chmod(file, os.stat(file).st_mode | 0o660)
