"""Which folders of a configuration are on which volume, and what is refused because it could not work in a pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.kubernetes_manifests import (
    CONFIGS,
    KINDS,
    OVERRIDES_OF,
    TRAININGS,
    command,
    in_root,
    pods,
    refusal,
    render,
    workload_of,
    workload_pods,
)

__all__ = ["in_root"]
pytestmark = pytest.mark.usefixtures("in_root")

each_kind = pytest.mark.parametrize("kind", KINDS)
each_training = pytest.mark.parametrize("kind", TRAININGS)

Capsys = pytest.CaptureFixture[str]


@each_kind
def test_the_configuration_is_the_file_as_it_is(kind: str, capsys: Capsys) -> None:
    manifests = render(capsys, kind, *OVERRIDES_OF[kind])
    (config_map,) = (each for each in manifests.values() if each["kind"] == "ConfigMap")
    files = {"config.yaml": "configs/demo.yaml"} | ({"search.yaml": CONFIGS["search"]} if kind == "search" else {})
    assert config_map["data"] == {name: Path(path).read_text() for name, path in files.items()}
    for pod in pods([each for each in manifests.values() if each["kind"] != "Deployment"]):
        (volume,) = (each for each in pod["volumes"] if "configMap" in each)
        assert volume["configMap"]["name"] == config_map["metadata"]["name"]


@pytest.mark.parametrize(
    ("store", "runs", "mounts"),
    [
        ("data/demo/store", "runs", ("/drumline/data", "/drumline/runs")),
        ("store", "runs/here", ("/drumline/store", "/drumline/runs")),
        ("./work/data/store", "work/runs", ("/drumline/work/data", "/drumline/work/runs")),
        ("/mnt/data/store", "/mnt/runs", ("/mnt/data", "/mnt/runs")),
        ("/scratch/store", "runs", ("/scratch", "/drumline/runs")),
        ("/drumline/data/store", "../results", ("/drumline/data", "/results")),
    ],
)
def test_volumes_are_mounted_where_the_configuration_looks(
    store: str, runs: str, mounts: tuple[str, str], capsys: Capsys
) -> None:
    overrides = (f"data.store={store}", f"run.directory={runs}")
    (pod,) = workload_pods(capsys, "job", *overrides)
    found = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert (found["data"]["mountPath"], found["runs"]["mountPath"]) == mounts
    assert found["data"].get("readOnly") is True
    assert "readOnly" not in found["runs"]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("data.store=.",), "data.store: got ., which is the working directory in the container"),
        (("run.directory=..",), "run.directory: got .., which is the working directory in the container or around it"),
        (("data.store=runs/store",), "got runs/store and runs, one within the other"),
        (("run.directory=data/demo/store",), "got data/demo/store and data/demo/store, one within the other"),
        (("data.store=/usr/share/store",), "data.store: got /usr/share/store, in /usr of the container"),
        (("run.directory=/tmp/runs",), "run.directory: got /tmp/runs, in /tmp of the container"),
        (("data.store=~/store",), "data.store: got ~/store, expected a path of the container"),
        (("checkpoint.directory=saves",), "checkpoint.directory: got saves, which is on no volume; expected a path in runs"),
        (("checkpoint.directory=data/saves",), "checkpoint.directory: got data/saves, which is on no volume"),
        (("distribution.backend=single",), "got single for 4 ranks in 4 pods"),
        (("distribution.backend=mirrored",), "got mirrored for 4 ranks in 4 pods"),
        (("train.global_batch_size=6",), "got 6, expected a multiple of the number of replicas, which is 4"),
        (("run.name=_",), "run.name"),
        (("run.name=124m",), "run.name: got 124m, expected a name for Kubernetes"),
        (("run.name=" + "a" * 60,), "the name aaa"),
        (("--name", "Demo"), "--name: got Demo, expected a name for Kubernetes"),
        (("--shared-memory", "32Gi"), "--shared-memory: got 32Gi, which is part of --memory, 32Gi"),
        (("--gpus-per-node", "1", "--ranks-per-node", "2"), "--ranks-per-node: got 2, expected at most 1"),
        (("--memory", "32GB"), "got '32GB', expected a size, as in 100Gi"),
        (("--cpus", "0"), "got '0', expected a number of cores"),
        (("--toleration", "gpu:Never"), "got 'gpu:Never', expected KEY"),
        (("--node-selector", "gpu"), "got 'gpu', expected a node's label"),
        (("--namespace", "a.b"), "got 'a.b', expected a name of Kubernetes"),
        (("--data-claim", "x", "--data-size", "1Gi"), "not allowed with argument"),
        (("--kind", "pod"), "got 'pod', expected one of job, jobset, mpijob"),
        (("--grace-second", "3s"), "expected a whole number"),
        (("--shards", "3"), "--shards: does not belong to `drumline launch kubernetes`"),
        (("--pods", "3"), "--pods: does not belong to `drumline launch kubernetes`"),
        (("train.step=3",), "train.step"),
    ],
)
def test_what_cannot_work_is_refused(overrides: tuple[str, ...], complaint: str, capsys: Capsys) -> None:
    assert complaint in refusal(capsys, *command("job", *overrides))


def test_nodes_have_to_be_given(capsys: Capsys) -> None:
    words = ["launch", "kubernetes", "configs/demo.yaml", "--image", "drumline:1"]
    assert "--nodes: got nothing" in refusal(capsys, *words)


def test_one_claim_for_both_is_one_volume(capsys: Capsys) -> None:
    (pod,) = workload_pods(capsys, "job", "--data-claim", "all", "--runs-claim", "all")
    assert [each["name"] for each in pod["volumes"] if "persistentVolumeClaim" in each] == ["data"]
    mounts = [(each["name"], each["mountPath"]) for each in pod["containers"][0]["volumeMounts"]]
    assert mounts[:2] == [("data", "/drumline/data"), ("data", "/drumline/runs")]


@each_training
def test_new_claims_are_rendered_and_others_named(kind: str, capsys: Capsys) -> None:
    manifests = render(capsys, kind, "--data-claim", "texts", "--runs-size", "5Gi", "--storage-class", "fast")
    (claim,) = (each for each in manifests.values() if each["kind"] == "PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "demo-runs"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "5Gi"}},
    }
    for pod in pods(workload_of(manifests)):
        claimed = {
            each["name"]: each["persistentVolumeClaim"]["claimName"]
            for each in pod["volumes"]
            if "persistentVolumeClaim" in each
        }
        assert claimed == {"data": "texts", "runs": "demo-runs"}


def test_shared_memory_is_memory_of_the_size_asked_for(capsys: Capsys) -> None:
    (pod,) = workload_pods(capsys, "job", "--shared-memory", "3Gi")
    (volume,) = (each for each in pod["volumes"] if each["name"] == "shared-memory")
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
