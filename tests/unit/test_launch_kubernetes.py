"""What a run becomes on Kubernetes: the workers of each kind, what starts them again, and how long a stop may take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.grace import grace_seconds
from tests.unit.kubernetes_manifests import (
    OVERRIDES,
    TRAININGS,
    containers,
    in_root,
    pods,
    render,
    workload_pods,
)
from trainer.config import plan_batches
from trainer.config_io import load_config
from trainer.errors import Diverged, HangDetected, Stopped, UserError

__all__ = ["in_root"]
pytestmark = pytest.mark.usefixtures("in_root")

WORKLOADS = {"job": ("Job", "demo"), "jobset": ("JobSet", "demo"), "prepare": ("Job", "demo-prepare")}
each_training = pytest.mark.parametrize("kind", TRAININGS)

Capsys = pytest.CaptureFixture[str]


# The gang.


def test_the_default_is_an_indexed_job_behind_a_headless_service(capsys: Capsys) -> None:
    manifests = render(capsys, "job")
    spec = manifests["Job", "demo"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 4
    assert spec["podReplacementPolicy"] == "Failed"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    service = manifests["Service", pod["subdomain"]]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True


@pytest.mark.parametrize(
    ("kind", "peers"),
    [
        ("job", "demo-0.demo,demo-1.demo,demo-2.demo,demo-3.demo"),
        ("jobset", "demo-workers-0-0.demo,demo-workers-0-1.demo,demo-workers-0-2.demo,demo-workers-0-3.demo"),
        ("mpijob", "demo-launcher.demo,demo-worker-0.demo,demo-worker-1.demo,demo-worker-2.demo"),
    ],
)
def test_workers_know_each_other_by_the_names_that_pods_get(kind: str, peers: str, capsys: Capsys) -> None:
    for pod in workload_pods(capsys, kind):
        for container in containers(pod):
            variables = {each["name"]: each["value"] for each in container["env"]}
            assert variables["DRUMLINE_PEERS"] == peers
            assert variables["DRUMLINE_JOB"] == "demo"
            assert variables["DRUMLINE_RANKS"] == "1"
            assert variables["DRUMLINE_SECRET_FILE"] == "/etc/drumline-secret/token"


@each_training
def test_workers_run_the_worker_after_the_doctor(kind: str, capsys: Capsys) -> None:
    # The operator's Service does not name pods that are not ready, so there the doctor cannot meet the others.
    share = [*OVERRIDES, "train.global_batch_size=4", "--workers", "1"]
    checks = share if kind == "mpijob" else ["--gang", *OVERRIDES]
    for pod in workload_pods(capsys, kind, *OVERRIDES):
        (doctor,), (worker,) = pod["initContainers"], pod["containers"]
        assert doctor["command"] == ["drumline", "doctor", "/etc/drumline/config.yaml", *checks]
        assert worker["command"] == ["drumline", "launch", "worker", "/etc/drumline/config.yaml", *OVERRIDES]
        same = set(worker) - {"name", "command"}
        assert {key: doctor[key] for key in same} == {key: worker[key] for key in same}


@pytest.mark.parametrize(
    ("options", "ranks", "gpus"),
    [((), "1", None), (("--ranks-per-node", "2"), "2", None), (("--gpus-per-node", "4"), "4", "4")],
)
@each_training
def test_ranks_are_gpus_or_as_many_as_asked_for(
    kind: str, options: tuple[str, ...], ranks: str, gpus: str | None, capsys: Capsys
) -> None:
    for pod in workload_pods(capsys, kind, *options):
        assert {each["name"]: each["value"] for each in pod["containers"][0]["env"]}["DRUMLINE_RANKS"] == ranks
        for container in containers(pod):
            resources = container["resources"]
            assert resources["limits"] == resources["requests"]
            assert resources["limits"].get("nvidia.com/gpu") == gpus
        assert ("affinity" in pod) == (gpus is not None)


def test_workers_with_gpus_are_alone_on_their_nodes(capsys: Capsys) -> None:
    (pod,) = workload_pods(capsys, "job", "--gpus-per-node", "4")
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "demo"
    assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"


def test_the_launcher_of_an_mpijob_is_a_worker_like_the_others(capsys: Capsys) -> None:
    spec = render(capsys, "mpijob")["MPIJob", "demo"]["spec"]
    launcher, worker = spec["mpiReplicaSpecs"]["Launcher"], spec["mpiReplicaSpecs"]["Worker"]
    assert spec["runLauncherAsWorker"] is True
    assert (launcher["replicas"], worker["replicas"]) == (1, 3)
    assert launcher["template"] == worker["template"]


def test_the_doctor_of_an_mpijob_sees_as_many_sequences_a_rank_as_the_run_has(capsys: Capsys) -> None:
    config = Path("configs/gpt2-124m.yaml")
    manifests = render(capsys, "mpijob", "--gpus-per-node", "8", config=config)
    (doctor,) = next(pods(manifests["MPIJob", "gpt2-124m"]))["initContainers"]
    overrides, (option, workers) = doctor["command"][3:-2], doctor["command"][-2:]
    assert (option, workers) == ("--workers", "8")
    whole = plan_batches(load_config(config).train, 32)
    part = plan_batches(load_config(config, overrides).train, 8)
    assert (part.rows_per_micro_batch, part.num_micro_batches) == (whole.rows_per_micro_batch, whole.num_micro_batches)


def test_an_mpijob_of_one_node_is_its_launcher(capsys: Capsys) -> None:
    spec = render(capsys, "mpijob", "--nodes", "1")["MPIJob", "demo"]["spec"]
    assert set(spec["mpiReplicaSpecs"]) == {"Launcher"}


def test_no_object_has_a_name_that_the_mpi_operator_takes(capsys: Capsys) -> None:
    names = set(render(capsys, "mpijob"))
    assert not names & {("ConfigMap", "demo-config"), ("Secret", "demo-ssh"), ("Service", "demo"), ("Job", "demo-launcher")}


# Failures.


@pytest.mark.parametrize("kind", ["job", "jobset", "prepare"])
def test_exit_codes_decide_what_becomes_of_a_job(kind: str, capsys: Capsys) -> None:
    manifest = render(capsys, kind)[WORKLOADS[kind]]
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"] if kind == "jobset" else manifest["spec"]
    rules = job["podFailurePolicy"]["rules"]
    for code, action in ((UserError, "FailJob"), (Diverged, "FailJob"), (Stopped, "Ignore"), (HangDetected, "Count")):
        matching = [rule for rule in rules if code.exit_code in rule.get("onExitCodes", {}).get("values", ())]
        assert [rule["action"] for rule in matching] == [action]
        # Of any container: what the doctor finds counts like what the worker says.
        assert matching[0]["onExitCodes"].keys() == {"operator", "values"}
    disrupted = [rule for rule in rules if "onPodConditions" in rule]
    assert disrupted == [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]


def test_restarts_count_once_for_the_whole_gang(capsys: Capsys) -> None:
    assert render(capsys, "job", "--restarts", "5")["Job", "demo"]["spec"]["backoffLimit"] == 5 * 4
    jobset = render(capsys, "jobset", "--restarts", "5")["JobSet", "demo"]["spec"]
    assert jobset["failurePolicy"]["maxRestarts"] == 5
    assert jobset["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0
    mpijob = render(capsys, "mpijob", "--restarts", "5")["MPIJob", "demo"]["spec"]
    assert mpijob["runPolicy"]["backoffLimit"] == 5


def test_a_jobset_does_not_try_again_what_its_job_gave_up(capsys: Capsys) -> None:
    (rule,) = render(capsys, "jobset")["JobSet", "demo"]["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@each_training
def test_a_stop_is_given_the_seconds_asked_for(kind: str, capsys: Capsys) -> None:
    for pod in workload_pods(capsys, kind, "--grace-seconds", "77"):
        assert pod["terminationGracePeriodSeconds"] == 77


def test_a_stop_is_given_what_saves_took_where_the_run_was_trained_before(tmp_path: Path, capsys: Capsys) -> None:
    usual = workload_pods(capsys, "job", "run.name=never-trained")[0]["terminationGracePeriodSeconds"]
    for step, seconds in ((100, 61.5), (200, 48.0)):
        folder = tmp_path / f"demo/checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"step": step, "save_seconds": seconds}))
    # The run's folder is as the configuration says it is here.
    text = Path("configs/demo.yaml").read_text().replace("directory: runs", f"directory: {tmp_path}")
    config = tmp_path / "demo.yaml"
    config.write_text(text)
    assert grace_seconds(load_config(config)) == 10 + 2 * 61.5 + 30
    assert usual == 10 + 2 * 40 + 30
    (tmp_path / "demo/checkpoints/step-00000200/manifest.json").write_text("{")
    assert grace_seconds(load_config(config)) == 10 + 2 * 61.5 + 30
