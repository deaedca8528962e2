"""That every option is obeyed, what `kubernetes prepare` renders, and the text that is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.kubernetes.output import dump
from tests.training import ROOT
from tests.unit.kubernetes_manifests import (
    ALL,
    KINDS,
    OVERRIDES,
    OVERRIDES_OF,
    TRAININGS,
    by_name,
    command,
    containers,
    in_root,
    pods,
    refusal,
    render,
    workload_of,
    workload_pods,
)
from trainer.cli import main

__all__ = ["in_root"]
pytestmark = pytest.mark.usefixtures("in_root")

each_kind = pytest.mark.parametrize("kind", KINDS)
each_training = pytest.mark.parametrize("kind", TRAININGS)

Capsys = pytest.CaptureFixture[str]


# Options that Kubernetes acts on.


@each_kind
def test_every_option_of_placement_is_obeyed(kind: str, capsys: Capsys) -> None:
    manifests = render(capsys, kind, *ALL[kind])
    assert {each["metadata"]["namespace"] for each in manifests.values()} == {"training"}
    assert all(name == "gang" or name.startswith("gang-") for _, name in manifests)
    workload = workload_of(manifests)
    spec = workload["spec"]
    run_policy = spec.get("runPolicy", spec)
    assert workload["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert run_policy["suspend"] is True
    assert run_policy["ttlSecondsAfterFinished"] == 86400
    for pod in pods(workload):
        assert pod["nodeSelector"] == {"pool": "a100", "kubernetes.io/arch": "amd64"}
        assert pod["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "spot", "operator": "Equal", "value": "1e3", "effect": "NoExecute"},
            {"key": "dedicated", "operator": "Exists"},
        ]
        assert pod["priorityClassName"] == "high"
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        limits = pod["containers"][0]["resources"]["limits"]
        assert (limits["cpu"], limits["memory"]) == ("7.5", "100Gi")


@each_kind
def test_nothing_is_suspended_without_a_queue(kind: str, capsys: Capsys) -> None:
    text = yaml.safe_dump(list(render(capsys, kind).values()))
    assert "suspend" not in text
    assert "kueue" not in text


@each_kind
def test_variables_of_a_secret_reach_all_that_works(kind: str, capsys: Capsys) -> None:
    for pod in workload_pods(capsys, kind, "--environment-secret", "s3"):
        for container in containers(pod):
            assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]


@each_kind
def test_a_key_is_mounted_where_the_configuration_looks_for_it(kind: str, capsys: Capsys, tmp_path: Path) -> None:
    security = {"security": {"encrypt": True, "key_file": "keys/drumline.key"}}
    config = encrypted_config(tmp_path, security)
    options = ("--key-secret", "run-key")
    words = [*options, f"config={config}"] if kind == "search" else options
    for pod in workload_pods(capsys, kind, *words, config=None if kind == "search" else config):
        volume = next(each for each in pod["volumes"] if each["name"] == "key")
        items = [{"key": "drumline.key", "path": "drumline.key"}]
        assert volume["secret"] == {"secretName": "run-key", "defaultMode": 0o440, "items": items}
        for container in containers(pod):
            mounts = [each for each in container["volumeMounts"] if each["name"] == "key"]
            assert mounts == [{"name": "key", "mountPath": "/drumline/keys", "readOnly": True}]


@pytest.mark.parametrize(
    ("security", "options", "expected"),
    [
        ({"encrypt": True, "key_file": "keys/a.key"}, (), "--key-secret: got nothing, expected a Secret with the key a.key"),
        (
            {"encrypt": True, "key_environment": "KEY"},
            (),
            "--environment-secret: got nothing, expected a Secret with the key KEY",
        ),
        ({}, ("--key-secret", "mine"), "--key-secret: got mine, expected nothing without security.key_file"),
        (
            {"key_file": "a.key"},
            ("--key-secret", "mine"),
            "security.key_file: got a.key, in or around /drumline of the container",
        ),
        ({"key_file": "data/a.key"}, ("--key-secret", "mine"), "got data/a.key, in or around /drumline/data of the container"),
        ({"key_file": "/etc/a.key"}, ("--key-secret", "mine"), "got /etc/a.key, in or around /etc/drumline of the container"),
    ],
)
def test_a_key_that_pods_would_not_have_is_refused(
    security: dict[str, Any], options: tuple[str, ...], expected: str, capsys: Capsys, tmp_path: Path
) -> None:
    config = encrypted_config(tmp_path, {"security": security})
    assert expected in refusal(capsys, *command("job", *options, config=config))


def encrypted_config(folder: Path, security: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(Path("configs/demo.yaml").read_text()) | security))
    return path


@each_training
def test_tensorboard_can_be_left_out(kind: str, capsys: Capsys) -> None:
    assert not [name for _, name in render(capsys, kind, "--no-tensorboard") if "tensorboard" in name]


def test_a_claim_for_both_serves_tensorboard_too(capsys: Capsys) -> None:
    manifests = render(capsys, "job", "--data-claim", "all", "--runs-claim", "all")
    pod = manifests["Deployment", "demo-tensorboard"]["spec"]["template"]["spec"]
    names = {each["name"] for each in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == names


# Preparing.


def test_prepare_is_an_indexed_job_of_shards(capsys: Capsys) -> None:
    manifests = render(capsys, "prepare", "--cpus", "2500m", *OVERRIDES)
    assert {kind for kind, _ in manifests} == {"ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "Job"}
    spec = manifests["Job", "demo-prepare"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimitPerIndex"] == 3
    (container,) = spec["template"]["spec"]["containers"]
    shard = ["--shard", "$(JOB_COMPLETION_INDEX)/3", "--merge", "--processes", "2"]
    assert container["command"] == ["drumline", "prepare", "/etc/drumline/config.yaml", *shard, *OVERRIDES]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "data")
    assert mount == {"name": "data", "mountPath": "/drumline/data"}


def test_prepare_and_training_have_one_data_volume(capsys: Capsys) -> None:
    prepared, trained = render(capsys, "prepare"), render(capsys, "job")
    key = ("PersistentVolumeClaim", "demo-data")
    assert prepared[key] == trained[key]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("data.train.0.path=texts/train.txt",), "data.train[0].path: got texts/train.txt, which is on no volume"),
        (("data.validation.0.path=~/x.txt",), "data.validation[0].path: got ~/x.txt, which is on no volume"),
        (
            ("data.tokenizer={kind: pretrained, path: /models/tokenizer.json}",),
            "data.tokenizer.path: got /models/tokenizer.json, which is on no volume; expected a path in data",
        ),
        (("--nodes", "3"), "--nodes: does not belong to `drumline launch kubernetes prepare`"),
        (("--no-tensorboard",), "--no-tensorboard: does not belong to"),
        (("--secret", "x"), "--secret: does not belong to"),
    ],
)
def test_what_cannot_be_prepared_is_refused(options: tuple[str, ...], complaint: str, capsys: Capsys) -> None:
    assert complaint in refusal(capsys, *command("prepare", *options))


def test_prepare_needs_a_configuration_and_shards(capsys: Capsys) -> None:
    assert "got no CONFIG" in refusal(capsys, "launch", "kubernetes", "prepare", "--image", "x")
    assert "--shards: got nothing" in refusal(capsys, "launch", "kubernetes", "prepare", "configs/demo.yaml", "--image", "x")


# Searching.


def test_a_search_is_an_indexed_job_whose_pods_share_a_journal(capsys: Capsys) -> None:
    manifests = render(capsys, "search", "--gpus-per-node", "2", *OVERRIDES_OF["search"])
    assert {kind for kind, _ in manifests} == {"ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "Job"}
    spec = manifests["Job", "search-demo-search"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == [
        *("drumline", "search", "/etc/drumline/search.yaml", "config=/etc/drumline/config.yaml"),
        *("storage=journal:runs/search-demo/search.journal", "trials=3", "parallel=2"),
    ]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert (mounts["data"]["mountPath"], mounts["runs"]["mountPath"]) == ("/drumline/data", "/drumline/runs")
    assert pod["terminationGracePeriodSeconds"] == 120


def test_a_search_with_a_database_has_its_url_of_a_secret(capsys: Capsys) -> None:
    options = ("storage_environment=DATABASE", "--environment-secret", "database")
    (pod,) = workload_pods(capsys, "search", *options)
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "database"}}]
    assert not [word for word in container["command"] if word.startswith("storage=")]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("storage_environment=DATABASE",), "--environment-secret: got nothing, expected a Secret with the key DATABASE"),
        (("storage=sqlite:///runs/search.db",), "storage: got sqlite:///runs/search.db, which several machines cannot share"),
        (("--nodes", "3"), "--nodes: does not belong to `drumline launch kubernetes search`"),
        (("trial=3",), "trial=3: unknown key; did you mean trials?"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: tuple[str, ...], complaint: str, capsys: Capsys) -> None:
    assert complaint in refusal(capsys, *command("search", *options))


# The text.


def test_words_that_kubernetes_would_expand_are_taken_as_they_are(capsys: Capsys) -> None:
    (pod,) = workload_pods(capsys, "job", "run.directory=runs/$(HOME)")
    assert pod["containers"][0]["command"][-1] == "run.directory=runs/$$(HOME)"


@each_kind
def test_the_order_of_objects_and_keys_is_always_the_same(kind: str, capsys: Capsys) -> None:
    texts = []
    for _ in range(2):
        assert main(command(kind, *ALL[kind], "--dry-run")) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert [list(each)[:3] for each in by_name(texts[0]).values()] == [["apiVersion", "kind", "metadata"]] * len(
        by_name(texts[0])
    )


@pytest.mark.parametrize(
    "text", ["1e3", "0x1F", "0o17", "y", "n", "yes", "12:30", "1_000", ".5", "-1", "null", "~", "2026-01-02", ""]
)
def test_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    written = dump({"value": text}).strip().removeprefix("value: ")
    assert written[0] == written[-1] == "'"
    assert yaml.safe_load(written) == text


def test_a_configuration_with_any_characters_arrives_as_it_is(tmp_path: Path, capsys: Capsys) -> None:
    text = Path("configs/demo.yaml").read_text() + "# trailing   \r\n#\ttab \u00e9 \u00a0 \U0001f941\n\n\n#end"
    config = tmp_path / "odd.yaml"
    config.write_bytes(text.encode())
    manifests = render(capsys, "job", config=config)
    assert manifests["ConfigMap", "demo-configuration"]["data"]["config.yaml"] == text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "file").write_text("")
    assert "--output: " in refusal(capsys, *command("job", "--output", str(tmp_path / "file/out")))


def test_help_imports_nothing_of_the_renderer() -> None:
    program = (
        "import sys; from trainer.cli import main; main(['launch', 'kubernetes', '--help']); "
        "found = {'yaml', 'pydantic', 'launch.kubernetes.render', 'launch.kubernetes.options'} & set(sys.modules); "
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("verb", "section"), [("kubernetes", "### Options"), ("slurm", "## Slurm")])
def test_the_guide_names_every_option_and_no_others(verb: str, section: str, capsys: Capsys) -> None:
    assert main(["launch", verb, "--help"]) == 0
    offered = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {
        "--help",
        "--verbose",
        "--quiet",
    }
    table = (ROOT / "docs/kubernetes.md").read_text().partition(f"\n{section}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `--")]
    assert set(re.findall(r"`(--[a-z-]+)`", "".join(rows))) == offered
