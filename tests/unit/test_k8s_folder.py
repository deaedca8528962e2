"""k8s/: the base is what the command writes, the overlays amount to what it prints, and the image has what they run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.training import ROOT
from tests.unit.kubernetes_manifests import Manifests, by_name, in_root, kustomize
from trainer.cli import main

__all__ = ["in_root"]
pytestmark = pytest.mark.usefixtures("in_root")

K8S = ROOT / "k8s"
README = (K8S / "README.md").read_text()
DOCKERFILE = (K8S / "Dockerfile").read_text()
OVERLAYS = {"cpu-2x1": "configs/demo.yaml", "gpu-4x8": "configs/gpt2-124m.yaml"}


def command_of_the_readme(config: str, *, writing: bool) -> list[str]:
    """The line of k8s/README.md that renders a configuration."""
    lines = re.sub(r" \\\n\s*", " ", README).splitlines()
    (line,) = (
        line
        for line in lines
        if line.strip().startswith(f"drumline launch kubernetes {config} ") and ("--output" in line) == writing
    )
    return shlex.split(line)[1:]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_equals_what_the_command_renders(overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command_of_the_readme(OVERLAYS[overlay], writing=False)) == 0
    assert kustomize(K8S / "overlays" / overlay) == by_name(capsys.readouterr().out)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_the_recipe_beside_it(overlay: str) -> None:
    assert (K8S / "overlays" / overlay / "config.yaml").read_text() == (ROOT / OVERLAYS[overlay]).read_text()


def test_the_base_is_what_the_command_writes(tmp_path: Path) -> None:
    words = command_of_the_readme("configs/demo.yaml", writing=True)
    assert words[-2:] == ["--output", "k8s/base"]
    assert main([*words[:-1], str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        path.name: path.read_text() for path in (K8S / "base").iterdir()
    }


def test_no_secret_is_in_the_folder() -> None:
    for path in K8S.rglob("*.yaml"):
        if path.name != "config.yaml":
            assert not [each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "Secret"], path


def images_and_volumes(manifests: Manifests) -> tuple[set[str], set[str]]:
    job = manifests["Job", "drumline"]["spec"]["template"]["spec"]
    images = {each["image"] for each in (*job["initContainers"], *job["containers"])}
    return images, {mount["mountPath"] for mount in job["containers"][0]["volumeMounts"]}


def test_the_readme_builds_the_images_that_the_overlays_run() -> None:
    for overlay in OVERLAYS:
        images, _ = images_and_volumes(kustomize(K8S / "overlays" / overlay))
        (image,) = images
        assert f"docker build -f k8s/Dockerfile -t {image} " in DOCKERFILE


def test_the_image_has_the_user_and_the_folder_of_the_pods() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "\nUSER 1000:1000\n" in final
    assert "\nWORKDIR /drumline\n" in final
    assert "\nENTRYPOINT" not in DOCKERFILE
    assert "/opt/drumline/bin" in re.findall(r"PATH=(\S+)", final)[0].split(":")


def test_the_image_is_made_of_what_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        copied |= {source.partition("/")[0] for source in line.split()[:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)
