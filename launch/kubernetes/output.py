"""Manifests as text: one stream of documents, or a folder for kustomize."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.kubernetes.objects import Manifest
from trainer.errors import UserError

KUSTOMIZATION = "kustomization.yaml"
_FOR_THE_OWNER, _FOR_ALL = 0o600, 0o644

# `1e3`, `0o17` and `y` are text for PyYAML, which quotes only what its YAML 1.1 takes for something else, and not for kubectl.
_UNLIKE_TEXT = re.compile(r"[-+.]?[0-9][0-9a-fA-FxXoO_.:+-]*|[yYnN]")


class _Dumper(yaml.SafeDumper):
    """Keeps the order of keys, writes lines as lines, and indents lists."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else "'" if _UNLIKE_TEXT.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(manifest: Manifest) -> str:
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def stream(manifests: Sequence[Manifest]) -> str:
    """All documents, for `kubectl apply -f -`."""
    return "---\n".join(dump(manifest) for manifest in manifests)


def write_folder(folder: Path, manifests: Sequence[Manifest]) -> list[Path]:
    """A file for each object, and a kustomization of them; returns what was written. A Secret is its owner's to read.

    Raises UserError where the folder cannot be written.
    """
    names = [f"{manifest['metadata']['name']}.{manifest['kind'].lower()}.yaml" for manifest in manifests]
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": names}
    contents = [*zip(names, manifests, strict=True), (KUSTOMIZATION, kustomization)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents:
            _write(folder / name, dump(content), _FOR_THE_OWNER if content["kind"] == "Secret" else _FOR_ALL)
    except OSError as error:
        raise UserError(f"--output: {folder}: cannot be written: {error.strerror}; take another folder") from error
    return [folder / name for name, _ in contents]


def _write(path: Path, text: str, mode: int) -> None:
    """Puts a file in place that never had more rights than it should."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
