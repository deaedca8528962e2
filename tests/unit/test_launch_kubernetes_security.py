"""Every pod satisfies the `restricted` Pod Security Standard and more; secrets are in Secret objects and nowhere else."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
import yaml

from tests.unit.kubernetes_manifests import (
    ALL,
    KINDS,
    TRAININGS,
    by_name,
    command,
    containers,
    in_root,
    pods,
    render,
)
from trainer.cli import main

__all__ = ["in_root"]
pytestmark = pytest.mark.usefixtures("in_root")

each_kind = pytest.mark.parametrize("kind", KINDS)
each_training = pytest.mark.parametrize("kind", TRAININGS)
each_extent = pytest.mark.parametrize("extent", ["no", "all"])

# Volumes that the standard allows, of those that are used here.
ALLOWED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


@each_kind
@each_extent
def test_every_pod_is_restricted(kind: str, extent: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(pods(list(render(capsys, kind, *(ALL[kind] if extent == "all" else ())).values())))
    assert len(found) == {"job": 2, "jobset": 2, "mpijob": 3, "prepare": 1, "search": 1}[kind]
    for pod in found:
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} <= ALLOWED_VOLUMES
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert security.get("runAsUser") != 0
            assert "privileged" not in security
            assert not any("hostPort" in port for port in container.get("ports", ()))


@each_kind
def test_what_programs_write_goes_to_volumes(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for pod in pods(list(render(capsys, kind).values())):
        empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
        for container in containers(pod):
            temporary = {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/tmp"}
            assert temporary and temporary <= empty
            assert {"name": "HOME", "value": "/tmp"} in container["env"]


@each_training
def test_the_secret_is_in_the_secret_alone(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(kind)) == 0
    text = capsys.readouterr().out
    token = by_name(text)["Secret", "demo-secret"]["data"]["token"]
    assert len(base64.b64decode(token)) == 64
    assert text.count(token) == 1


@each_training
def test_each_rendering_has_a_secret_of_its_own(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = {render(capsys, kind)["Secret", "demo-secret"]["data"]["token"] for _ in range(3)}
    assert len(tokens) == 3


@each_training
def test_a_dry_run_prints_the_same_with_the_secret_masked(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    real, dry = render(capsys, kind), render(capsys, kind, "--dry-run")
    secret = real["Secret", "demo-secret"]["data"]
    assert dry["Secret", "demo-secret"]["data"] == {"token": "(masked)"}
    assert secret.pop("token") not in yaml.safe_dump(list(dry.values()))
    secret["token"] = "(masked)"
    assert dry == real


def test_a_dry_run_writes_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(capsys, "job", "--dry-run", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@each_training
def test_a_secret_that_is_there_is_named_and_not_rendered(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = render(capsys, kind, "--secret", "mine")
    assert not [name for name in manifests if name[0] == "Secret"]
    pod = next(pods(list(manifests.values())))
    (volume,) = (volume for volume in pod["volumes"] if "secret" in volume)
    assert volume["secret"] == {"secretName": "mine", "defaultMode": 0o440}


def test_a_file_with_a_secret_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "demo-secret.secret.yaml").write_text("left here by someone, for all to read")
    (folder / "demo-secret.secret.yaml").chmod(0o666)
    assert main(command("job", "--output", str(folder))) == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes.pop("demo-secret.secret.yaml") == 0o600
    assert set(modes.values()) == {0o644}
    assert "token" in by_name((folder / "demo-secret.secret.yaml").read_text())["Secret", "demo-secret"]["data"]


@each_training
def test_workers_talk_to_each_other_and_to_dns_and_to_nobody_else(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = render(capsys, kind)
    policy = manifests["NetworkPolicy", "demo"]["spec"]
    workers = {
        f"app.kubernetes.io/{key}": value
        for key, value in (("name", "drumline"), ("instance", "demo"), ("component", "worker"))
    }
    peers = [{"podSelector": {"matchLabels": workers}}]
    assert policy["podSelector"] == {"matchLabels": workers}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"from": peers}]
    names = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    assert policy["egress"] == [{"to": peers}, names]


@each_training
def test_pods_carry_the_labels_by_which_policies_and_services_choose(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = render(capsys, kind)
    selectors = [each["spec"]["podSelector"]["matchLabels"] for each in manifests.values() if each["kind"] == "NetworkPolicy"]
    selectors += [each["spec"]["selector"] for each in manifests.values() if each["kind"] == "Service"]
    templates = [each["metadata"]["labels"] for each in templates_in(list(manifests.values()))]
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in templates), selector


def templates_in(value: object) -> list[dict[str, dict[str, dict[str, str]]]]:
    if isinstance(value, list):
        return [found for inner in value for found in templates_in(inner)]
    if not isinstance(value, dict):
        return []
    here = [value] if "containers" in value.get("spec", {}) else []
    return here + [found for inner in value.values() for found in templates_in(inner)]


def test_shards_talk_to_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    policy = render(capsys, "prepare")["NetworkPolicy", "demo-prepare"]["spec"]
    assert policy["ingress"] == policy["egress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_searching_pods_talk_to_a_database_alone(capsys: pytest.CaptureFixture[str]) -> None:
    policy = render(capsys, "search")["NetworkPolicy", "search-demo-search"]["spec"]
    assert policy["ingress"] == policy["egress"] == []
    options = ("storage_environment=DATABASE", "--environment-secret", "database")
    policy = render(capsys, "search", *options)["NetworkPolicy", "search-demo-search"]["spec"]
    assert policy["ingress"] == []
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 5432, 3306]


def test_checkpoints_behind_a_url_open_https(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command("job", "checkpoint.directory=s3://bucket/demo")[1:]]) == 0
    printed = capsys.readouterr()
    assert "port 443 everywhere: checkpoint.directory is s3://bucket/demo" in printed.err
    egress = by_name(printed.out)["NetworkPolicy", "demo"]["spec"]["egress"]
    assert {"ports": [{"protocol": "TCP", "port": 443}]} in egress


def test_tensorboard_is_reached_from_its_namespace_and_reads_only(capsys: pytest.CaptureFixture[str]) -> None:
    manifests = render(capsys, "job")
    policy = manifests["NetworkPolicy", "demo-tensorboard"]["spec"]
    assert policy["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 6006}]}]
    assert policy["egress"] == []
    assert manifests["Service", "demo-tensorboard"]["spec"]["type"] == "ClusterIP"
    (container,) = manifests["Deployment", "demo-tensorboard"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "runs", "mountPath": "/drumline/runs", "readOnly": True} in container["volumeMounts"]
    assert container["command"][:3] == ["tensorboard", "--logdir", "/drumline/runs/demo/tensorboard"]
    assert "--bind_all" in container["command"]
