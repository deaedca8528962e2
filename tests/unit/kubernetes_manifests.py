"""What the tests of rendered manifests share: renderings of every kind, with no options and with all."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training import ROOT
from trainer.cli import main

TRAININGS = ("job", "jobset", "mpijob")
KINDS = (*TRAININGS, "prepare", "search")

# What the command cannot do without.
LEAST = {
    **{kind: ("--nodes", "4", "--kind", kind) for kind in TRAININGS},
    "prepare": ("--shards", "3"),
    "search": ("--pods", "3"),
}
# What each kind is asked for with.
CONFIGS = {**dict.fromkeys(KINDS, "configs/demo.yaml"), "search": "configs/search/demo.yaml"}
COMMON = (
    *("--name", "gang", "--namespace", "training", "--cpus", "7.5", "--memory", "100Gi", "--restarts", "5"),
    *("--queue", "gpus", "--node-selector", "pool=a100", "--node-selector", "kubernetes.io/arch=amd64"),
    *("--toleration", "nvidia.com/gpu:NoSchedule", "--toleration", "spot=1e3:NoExecute", "--toleration", "dedicated"),
    *("--image-pull-secret", "registry", "--priority-class", "high", "--ttl-seconds", "86400"),
)
ALL = {
    "prepare": (*COMMON, "--data-size", "2Ti", "--storage-class", "shared", "--environment-secret", "s3"),
    "search": (
        *(*COMMON, "--gpus-per-node", "8", "--data-claim", "texts", "--runs-size", "2Ti", "--storage-class", "shared"),
        *("--shared-memory", "16Gi", "--grace-seconds", "321", "--environment-secret", "database"),
    ),
    **{
        kind: (
            *(*COMMON, "--gpus-per-node", "8", "--ranks-per-node", "4", "--data-claim", "texts", "--runs-size", "2Ti"),
            *("--storage-class", "shared", "--shared-memory", "16Gi", "--grace-seconds", "321", "--environment-secret", "s3"),
        )
        for kind in TRAININGS
    },
}
OVERRIDES = ("train.steps=100", "optimizer.learning_rate=1e-3")
OVERRIDES_OF = {**dict.fromkeys(KINDS, OVERRIDES), "search": ("trials=3", "parallel=2")}

Manifests = dict[tuple[str, str], dict[str, Any]]


def command(kind: str, *options: str, config: Path | str | None = None) -> list[str]:
    words = [] if kind in TRAININGS else [kind]
    return ["-q", "launch", "kubernetes", *words, str(config or CONFIGS[kind]), "--image", "drumline:1", *LEAST[kind], *options]


def by_name(text: str) -> Manifests:
    """The documents of a stream, by kind and name."""
    documents = list(yaml.safe_load_all(text))
    found = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    assert len(found) == len(documents)
    return found


def render(capsys: pytest.CaptureFixture[str], kind: str, *options: str, config: Path | str | None = None) -> Manifests:
    """What the command prints, run from the repository's root."""
    assert main(command(kind, *options, config=config)) == 0, capsys.readouterr().err
    return by_name(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says when it refuses."""
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def pods(value: object) -> Iterator[dict[str, Any]]:
    """The `spec` of every pod in a manifest, wherever it is."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def workload_of(manifests: Manifests) -> dict[str, Any]:
    """The one object that runs the work."""
    (workload,) = (each for each in manifests.values() if each["kind"] in ("Job", "JobSet", "MPIJob"))
    return workload


def workload_pods(
    capsys: pytest.CaptureFixture[str], kind: str, *options: str, config: Path | str | None = None
) -> list[dict[str, Any]]:
    return list(pods(workload_of(render(capsys, kind, *options, config=config))))


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def kustomize(folder: Path) -> Manifests:
    """What kubectl builds of a folder; skipped where it is missing or has a kustomize that is too old."""
    try:
        version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("kubectl is not installed")
    match = re.search(r"Kustomize Version: v(\d+)", version.stdout)
    if match is None or int(match[1]) < 4:
        pytest.skip(f"kubectl has a kustomize older than v4: {version.stdout.strip()}")
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    return by_name(built.stdout)


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
