"""What is rendered is what Kubernetes, JobSet and the MPI operator take: held against their schemas, unknown fields refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils as kubernetes_schemas

from tests.training import ROOT
from tests.unit.kubernetes_manifests import ALL, KINDS, OVERRIDES_OF, TRAININGS, Manifests, in_root, kustomize, render

__all__ = ["in_root"]
pytestmark = pytest.mark.usefixtures("in_root")

# Each is there twice, strict and not.
VERSIONS = sorted(set(kubernetes_schemas.all_versions()), key=lambda version: [int(part) for part in version.split(".")])[-3:]
SCHEMAS = ROOT.parent / "shared/schemas"
CUSTOM = {"JobSet": "jobset.x-k8s.io_jobsets.yaml", "MPIJob": "kubeflow.org_mpijobs.yaml"}

EXTENTS = {"no": dict.fromkeys(KINDS, ()), "all": {kind: (*ALL[kind], *OVERRIDES_OF[kind]) for kind in KINDS}}
each_extent = pytest.mark.parametrize("extent", EXTENTS)
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def schemas_read_once() -> Iterator[None]:
    """The package reads a megabyte of definitions for every object."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_schemas, "schema_contents", functools.cache(kubernetes_schemas.schema_contents))
        yield


def validate(manifests: Manifests, version: str) -> None:
    """All built-in objects, in strict mode."""
    built_in = [each for each in manifests.values() if each["kind"] not in CUSTOM]
    assert built_in
    for manifest in built_in:
        assert kubernetes_validate.validate(manifest, version, strict=True) == ".".join(version.split(".")[:2])


def strict(schema: Any) -> Any:
    """A structural schema of which no object has a field that it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@functools.cache
def custom_schema(kind: str) -> dict[str, Any]:
    path = SCHEMAS / CUSTOM[kind]
    if not path.exists():
        pytest.skip(f"{path} is not here")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    (version,) = yaml.load(path.read_text(), Loader=loader)["spec"]["versions"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    # The API server sees to these itself, in every object.
    schema["properties"]["metadata"] = {"type": "object"}
    return {**schema, "x-version": version["name"]}


def validate_custom(manifest: dict[str, Any]) -> None:
    schema = custom_schema(manifest["kind"])
    assert manifest["apiVersion"].endswith(f"/{schema['x-version']}")
    jsonschema.validate(manifest, schema)


def test_three_versions_of_kubernetes_are_tried() -> None:
    assert len({tuple(version.split(".")[:2]) for version in VERSIONS}) == 3


@each_kind
@each_extent
@pytest.mark.parametrize("version", VERSIONS)
def test_built_in_objects_are_valid(kind: str, extent: str, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    validate(render(capsys, kind, *EXTENTS[extent][kind]), version)


def test_built_in_schemas_refuse_what_they_do_not_name(capsys: pytest.CaptureFixture[str]) -> None:
    manifests = render(capsys, "job")
    manifests["Job", "demo"]["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="enviroment"):
        validate(manifests, VERSIONS[-1])


@each_extent
@pytest.mark.parametrize(("kind", "custom"), [("jobset", "JobSet"), ("mpijob", "MPIJob")])
def test_custom_objects_are_valid(kind: str, custom: str, extent: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = render(capsys, kind, *EXTENTS[extent][kind])
    (manifest,) = (each for each in manifests.values() if each["kind"] in CUSTOM)
    assert manifest["kind"] == custom
    validate_custom(manifest)


@pytest.mark.parametrize(("kind", "custom"), [("jobset", "JobSet"), ("mpijob", "MPIJob")])
def test_custom_schemas_refuse_what_they_do_not_name(kind: str, custom: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = render(capsys, kind)
    (manifest,) = (each for each in manifests.values() if each["kind"] == custom)
    manifest["spec"]["restartLimit"] = 3
    with pytest.raises(jsonschema.ValidationError, match="restartLimit"):
        validate_custom(manifest)


@pytest.mark.parametrize("overlay", ["cpu-2x1", "gpu-4x8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_overlays_are_valid(overlay: str, version: str) -> None:
    validate(kustomize(ROOT / "k8s/overlays" / overlay), version)


@each_kind
@each_extent
def test_a_folder_is_built_by_kustomize_to_what_is_printed(
    kind: str, extent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*EXTENTS[extent][kind], *(("--secret", "shared") if kind in TRAININGS else ()))
    printed = render(capsys, kind, *options)
    render(capsys, kind, *options, "--output", str(tmp_path / "out"))
    assert kustomize(tmp_path / "out") == printed
