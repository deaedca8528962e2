"""Runs as they are on Kubernetes: started from the printed manifests, killed, drained, cut off, and equal to one process's."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rehearsal.cluster import Cluster
from tests.rehearsal.conftest import Rehearsed
from tests.rehearsal.controllers import JobController, JobSetController
from tests.rehearsal.pods import Pod
from tests.rehearsal.run import NAME, RESOURCES, STEPS, Workshop, compare, make_workshop
from tests.rehearsal.test_cluster import plain_pod
from tests.rehearsal.traffic import selects
from trainer.encryption.files import is_encrypted_file

pytestmark = pytest.mark.rehearsal

# What reductions in another order make of losses.
_TOLERANCE = 1e-5
_LIMIT_SECONDS = 300.0
_PORT = 29400


@pytest.fixture
def stage(cluster: Cluster, workshop: Workshop) -> Cluster:
    """A cluster with the claims that the runs use."""
    cluster.claims |= {"data": workshop.directory / "data", "runs": workshop.directory / "runs"}
    return cluster


@pytest.mark.parametrize(("backend", "nodes", "ranks"), [("horovod", 2, 1), ("horovod", 3, 2), ("multiworker", 3, 2)])
def test_job(
    stage: Cluster, workshop: Workshop, reference: Workshop, rehearsed: Rehearsed, backend: str, nodes: int, ranks: int
) -> None:
    rehearsed.what = f"Job, {backend}, {nodes} pods x {ranks}, undisturbed"
    stage.apply(workshop.render_training(nodes, ranks, "--no-tensorboard", f"distribution.backend={backend}"))
    stage.wait_until(lambda: len(stage.pods) == nodes, 5, "the pods")
    workers = [*stage.pods]
    knock = f"import socket; socket.create_connection(('{NAME}-0.{NAME}', {_PORT}), 1); print('let in')"
    stage.apply([plain_pod("stranger", {}, ["sh", "-c", f'while sleep 1; do python -c "{knock}"; done'])])
    assert stage.wait_for_outcome(NAME, _LIMIT_SECONDS) == "Complete"
    assert [pod.hostname for pod in stage.pods] == [*(f"{NAME}-{index}" for index in range(nodes)), "stranger"]
    for pod in workers:
        assert "FAIL" not in pod.output
        assert "ok    all-reduce:" in pod.output
    (policy,) = stage.of_kind("NetworkPolicy")
    assert [selects(policy, pod) for pod in stage.pods] == [True] * nodes + [False]
    assert "timed out" in stage.pods[-1].output
    assert "let in" not in stage.pods[-1].output
    settle(rehearsed, workshop, reference)


def test_job_on_horovod_killed_then_drained_then_cut_off(
    stage: Cluster, workshop: Workshop, reference: Workshop, rehearsed: Rehearsed
) -> None:
    rehearsed.what = "Job, horovod, 2 pods x 1, killed, drained, cut off"
    stage.apply(workshop.render_training(2, 1, "--no-tensorboard", "distribution.backend=horovod"))
    job = stage.controllers[NAME]
    assert isinstance(job, JobController)
    assert disturb(stage, workshop, f"{NAME}-1", Pod.kill, 30) == [70, 137]
    assert (job.num_failures, job.num_ignored) == (2, 0)
    assert disturb(stage, workshop, f"{NAME}-0", Pod.drain, 60) == [75, 75]
    assert (job.num_failures, job.num_ignored) == (2, 2)
    assert disturb(stage, workshop, f"{NAME}-1", Pod.cut, 95) == [70, 70]
    assert (job.num_failures, job.num_ignored) == (4, 2)
    assert stage.wait_for_outcome(NAME, _LIMIT_SECONDS) == "Complete"
    assert len(stage.pods) == 8
    settle(rehearsed, workshop, reference)
    workshop.drumline("verify", f"runs/{NAME}")


def test_job_on_multiworker_killed(stage: Cluster, workshop: Workshop, reference: Workshop, rehearsed: Rehearsed) -> None:
    rehearsed.what = "Job, multiworker, 2 pods x 1, killed"
    stage.apply(workshop.render_training(2, 1, "--no-tensorboard", "distribution.backend=multiworker"))
    disturb(stage, workshop, f"{NAME}-0", Pod.kill, 30)
    assert stage.wait_for_outcome(NAME, _LIMIT_SECONDS) == "Complete"
    assert len(stage.pods) == 4
    settle(rehearsed, workshop, reference)
    workshop.drumline("verify", f"runs/{NAME}")


def test_jobset_killed(stage: Cluster, workshop: Workshop, reference: Workshop, rehearsed: Rehearsed) -> None:
    rehearsed.what = "JobSet, 2 pods x 1, killed"
    stage.apply(workshop.render_training(2, 1, "--no-tensorboard", "--kind", "jobset"))
    jobset = stage.controllers[NAME]
    assert isinstance(jobset, JobSetController)
    disturb(stage, workshop, f"{NAME}-workers-0-1", Pod.kill, 30)
    assert stage.wait_for_outcome(NAME, _LIMIT_SECONDS) == "Complete"
    assert jobset.num_restarts == 1
    settle(rehearsed, workshop, reference)


def test_mpijob_killed(stage: Cluster, workshop: Workshop, reference: Workshop, rehearsed: Rehearsed) -> None:
    """The worker's pod stays, and its container comes back; the launcher comes back as another pod."""
    rehearsed.what = "MPIJob, 2 pods x 1, killed"
    stage.apply(workshop.render_training(2, 1, "--no-tensorboard", "--kind", "mpijob"))
    stage.wait_until(lambda: workshop.step >= 30, _LIMIT_SECONDS, "step 30")
    worker = stage.active(f"{NAME}-worker-0")
    worker.kill()
    assert stage.wait_for_outcome(NAME, _LIMIT_SECONDS) == "Complete"
    launchers = [pod for pod in stage.pods if pod.hostname == f"{NAME}-launcher"]
    assert [pod.exit_codes["worker"] for pod in launchers] == [70, 0]
    assert worker.num_restarts == 1
    settle(rehearsed, workshop, reference)


@pytest.mark.usefixtures("rehearsed")
def test_typing_error_ends_the_job_at_once(stage: Cluster, workshop: Workshop) -> None:
    manifests = workshop.render_training(2, 1, "--no-tensorboard", "--grace-seconds", "5")
    (configuration,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    text = configuration["data"]["config.yaml"]
    configuration["data"]["config.yaml"] = text.replace("num_layers", "num_layer")
    stage.apply(manifests)
    outcome = stage.wait_for_outcome(NAME, 60)
    assert outcome.startswith("PodFailurePolicy: container doctor of band-")
    assert "exit code 2" in outcome
    stage.wait_until(lambda: all(pod.finished for pod in stage.pods), 40, "the end of the other pod")
    assert len(stage.pods) == 2
    assert any("num_layer" in pod.output and "num_layers" in pod.output for pod in stage.pods)


@pytest.mark.usefixtures("rehearsed")
def test_tensorboard_answers_over_its_service_within_its_namespace(
    stage: Cluster, workshop: Workshop, reference: Workshop
) -> None:
    stage.claims["runs"] = reference.directory / "runs"
    manifests = [each for each in workshop.render_training(2, 1) if each["kind"] != "Job"]
    stage.apply(manifests)
    stage.wait_until(lambda: any(pod.ready for pod in stage.pods), 60, "TensorBoard")
    service = f"{NAME}-tensorboard"
    stage.wait_until(lambda: stage.knows(service), 5, "its name")
    ask = f"import urllib.request as r; print(r.urlopen('http://{service}.default:6006/data/runs', timeout=5).read().decode())"
    neighbour, stranger = plain_pod("neighbour", {}, ["python", "-c", ask]), plain_pod("stranger", {}, ["python", "-c", ask])
    stranger["metadata"]["namespace"] = "elsewhere"
    stage.apply([neighbour, stranger])
    stage.wait_until(lambda: all(pod.finished for pod in stage.pods[1:]), 30, "the answers")
    assert json.loads(stage.pods[1].output.splitlines()[-1]) == ["train", "validation"]
    assert "timed out" in stage.pods[2].output


@pytest.mark.usefixtures("rehearsed")
def test_prepare_in_2_shards_and_the_merge(cluster: Cluster, reference: Workshop, tmp_path: Path) -> None:
    fresh = make_workshop(tmp_path / "fresh")
    cluster.claims["data"] = fresh.directory / "data"
    cluster.apply(fresh.render("prepare", "config.yaml", "--shards", "2", "--data-claim", "data", "--cpus", "1"))
    assert cluster.wait_for_outcome(f"{NAME}-prepare", 60) == "Complete"
    made, expected = (each.directory / "data" / "store" for each in (fresh, reference))
    assert contents(made) == contents(expected)


def test_an_encrypted_store_and_run_with_a_key_from_a_secret(
    cluster: Cluster, reference: Workshop, rehearsed: Rehearsed, tmp_path: Path
) -> None:
    rehearsed.what = "Job, 2 pods x 1, encrypted, prepared in 2 shards"
    fresh = make_workshop(tmp_path / "fresh")
    (fresh.directory / "keys").mkdir()
    fresh.drumline("keys", "create", "keys/drumline.key")
    key = (fresh.directory / "keys/drumline.key").read_text()
    data = {"drumline.key": base64.b64encode(key.encode()).decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "run-key"}, "data": data}
    options = ("--key-secret", "run-key", "security.encrypt=true", "security.key_file=keys/drumline.key")
    cluster.claims |= {"data": fresh.directory / "data", "runs": fresh.directory / "runs"}
    preparation = fresh.render("prepare", "config.yaml", "--shards", "2", "--data-claim", "data", "--cpus", "1", *options)
    training = fresh.render_training(2, 1, "--no-tensorboard", *options)
    assert key.strip() not in json.dumps([preparation, training])
    cluster.apply([secret, *preparation])
    assert cluster.wait_for_outcome(f"{NAME}-prepare", 60) == "Complete"
    cluster.apply(training)
    assert cluster.wait_for_outcome(NAME, _LIMIT_SECONDS) == "Complete"
    settle(rehearsed, fresh, reference)
    written = [*(fresh.directory / "data/store").rglob("*.arrow"), *fresh.run.rglob("*.safetensors")]
    assert len(written) > 4
    assert all(is_encrypted_file(path) for path in written)
    assert not any(key.strip() in pod.output for pod in cluster.pods)


@pytest.mark.usefixtures("rehearsed")
def test_a_search_in_2_pods_of_which_one_is_drained(stage: Cluster, workshop: Workshop, reference: Workshop) -> None:
    rates = {"optimizer.learning_rate": {"values": [1e-4, 3e-4, 1e-3, 3e-3]}}
    search = {"name": "rates", "config": "config.yaml", "method": "grid", "metric": "loss", "parameters": rates}
    (workshop.directory / "search.yaml").write_text(json.dumps(search))
    claims = ("--data-claim", "data", "--runs-claim", "runs")
    stage.apply(workshop.render("search", "search.yaml", "--pods", "2", *claims, *RESOURCES))
    runs = workshop.directory / "runs/rates"
    begun = runs / "trial-0000/run/metrics.jsonl"
    stage.wait_until(lambda: begun.exists() and begun.stat().st_size > 0, 60, "the first steps")
    first = next(pod for pod in stage.pods if "trial 0: " in pod.output)
    first.drain()
    stage.wait_until(lambda: first.finished, 60, "the drained pod's end")
    assert stage.wait_for_outcome("rates-search", _LIMIT_SECONDS) == "Complete"
    assert [line.split(",")[1] for line in (runs / "results.csv").read_text().splitlines()] == ["state", *["done"] * 4]
    starts = [json.loads((runs / f"trial-{trial:04d}/run/run.json").read_text())["starts"] for trial in range(4)]
    assert [len(each) for each in starts[1:]] == [1, 1, 1]
    assert len({each[0]["host"] for each in starts}) == 2
    for trial in range(4):
        workshop.drumline("verify", f"runs/rates/trial-{trial:04d}/run")


def disturb(stage: Cluster, workshop: Workshop, hostname: str, how: Callable[[Pod], None], step: int) -> list[int | None]:
    """Brings harm to a pod when the run is at a step or further, and waits until the gang goes on from a checkpoint. The exit
    codes of the pods that took part, by their host names."""
    stage.wait_until(lambda: workshop.step >= step, _LIMIT_SECONDS, f"step {step}")
    gang = [pod for pod in stage.pods if not pod.finished]
    how(stage.active(hostname))
    stage.wait_until(lambda: all(pod.finished for pod in gang), _LIMIT_SECONDS, f"the end of all pods after {how.__name__}")
    assert workshop.step < STEPS, "the run was over before it was disturbed"
    gang.sort(key=lambda pod: pod.hostname)
    told = f"going on from runs/{NAME}/checkpoints/step-"
    stage.wait_until(
        lambda: (pod := stage.newest(gang[0].hostname)) not in gang and told in pod.output, _LIMIT_SECONDS, "the next start"
    )
    return [pod.exit_codes.get("worker") for pod in gang]


def settle(rehearsed: Rehearsed, workshop: Workshop, reference: Workshop) -> None:
    """Holds a run against that of one process: its losses, and the hash over all samples that it took."""
    rehearsed.difference = compare(workshop.run, reference.run)
    assert rehearsed.difference < _TOLERANCE


def contents(store: Path) -> dict[str, bytes]:
    """What a store is made of; its other files say how it was made."""
    files = [store / "manifest.json", *sorted(store.rglob("*.arrow"))]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}
