"""The rehearsal's own cluster keeps Kubernetes' rules, tried with pods that run a shell."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.cluster import Cluster
from tests.rehearsal.controllers import JobController
from tests.training import run_python

pytestmark = pytest.mark.rehearsal


Rules = list[dict[str, Any]]


def job(script: str, *, pods: int = 2, init: str | None = None, rules: Rules | None = None, limit: int = 3) -> list[Any]:
    """A Job of some pods that run a script, and the Service of their names."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": "band",
        "terminationGracePeriodSeconds": 2,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "fsGroup": 1000},
        "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        "containers": [container("main", script)],
    }
    if init is not None:
        spec["initContainers"] = [container("first", init)]
    content = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": limit,
        "template": {"metadata": {"labels": {"band": "yes"}}, "spec": spec},
    }
    if rules is not None:
        content["podFailurePolicy"] = {"rules": rules}
    service = {"clusterIP": "None", "selector": {"band": "yes"}, "publishNotReadyAddresses": True}
    return [
        {"kind": "Service", "metadata": {"name": "band"}, "spec": service},
        {"kind": "Job", "metadata": {"name": "demo"}, "spec": content},
    ]


def container(name: str, script: str) -> dict[str, Any]:
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {
        "name": name,
        "command": ["sh", "-c", script],
        "env": [{"name": "PLACE", "value": "place $(JOB_COMPLETION_INDEX)"}],
        "securityContext": security,
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }


def test_pods_have_the_surroundings_that_they_ask_for(cluster: Cluster) -> None:
    script = """
        set -e
        echo "$JOB_COMPLETION_INDEX $(hostname) $(id -u):$(id -g):$(id -G) $$$$ $PLACE"
        cat /tmp/from-init; grep CapBnd /proc/self/status; ls /sys/class/net | tr '\\n' ' '
        ! touch /drumline/file 2>/dev/null
        ! dd if=/dev/zero of=/dev/shm/file bs=1M count=2 2>/dev/null
        until getent hosts demo-1.band && getent hosts demo-0.band.default.svc.cluster.local; do sleep 0.1; done
    """
    cluster.apply(job(script, init="echo $JOB_COMPLETION_INDEX > /tmp/from-init"))
    assert cluster.wait_for_outcome("demo", 20) == "Complete", cluster.pods[0].output
    first = cluster.pods[0]
    for expected in ("0 demo-0 1000:1000:1000 1 place $(JOB_COMPLETION_INDEX)", "CapBnd:\t0000000000000000", "eth0 lo"):
        assert expected in first.output, first.output
    assert first.address in first.output
    assert cluster.pods[1].address in first.output


def plain_pod(name: str, labels: dict[str, str], command: list[str]) -> dict[str, Any]:
    """A plain pod, which does not come back."""
    main = {"name": "main", "command": command}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"restartPolicy": "Never", "containers": [main]},
    }


EXIT_CODES: Rules = [
    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}},
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [75]}},
]


def controller(cluster: Cluster) -> JobController:
    found = cluster.controllers["demo"]
    assert isinstance(found, JobController)
    return found


def test_a_failure_that_the_policy_names_ends_the_job_and_its_other_pods(cluster: Cluster) -> None:
    script = "[ $JOB_COMPLETION_INDEX = 1 ] && exit 2; trap 'exit 75' TERM; while :; do sleep 0.1; done"
    cluster.apply(job(script, rules=EXIT_CODES))
    assert cluster.wait_for_outcome("demo", 10).startswith("PodFailurePolicy: container main of demo-1-")
    cluster.wait_until(lambda: all(pod.finished for pod in cluster.pods), 5, "the end of the other pod")
    assert [pod.exit_codes["main"] for pod in cluster.pods] == [75, 2]


def test_failures_count_towards_the_limit_unless_the_policy_ignores_them(cluster: Cluster) -> None:
    script = "if [ $JOB_COMPLETION_INDEX = 1 ]; then exit 70; fi; [ -e /tmp/x ] || sleep 0.2; exit 75"
    cluster.apply(job(script, rules=EXIT_CODES, limit=1))
    assert cluster.wait_for_outcome("demo", 20) == "BackoffLimitExceeded"
    assert controller(cluster).num_failures == 2
    assert controller(cluster).num_ignored >= 1


def test_a_drained_pod_has_its_grace_period_and_a_killed_one_none(cluster: Cluster) -> None:
    """And as process 1, which a container's program is, nothing dies of a signal that it has no handler for."""
    script = """
        [ $JOB_COMPLETION_INDEX = 0 ] && trap 'sleep 0.5; exit 75' TERM
        sleep 1000 & echo "started with child $!"; while :; do sleep 0.1; done
    """
    cluster.apply(job(script, rules=EXIT_CODES, limit=0))
    cluster.wait_until(lambda: len([pod for pod in cluster.pods if "child" in pod.output]) == 2, 10, "the start")
    stubborn, first = cluster.active("demo-1"), cluster.active("demo-0")
    for pod in (first, stubborn):
        pod.drain()
    cluster.wait_until(lambda: stubborn.finished and len(cluster.pods) == 4, 10, "their ends and their successors")
    assert (first.exit_codes["main"], stubborn.exit_codes["main"]) == (75, 137)
    assert controller(cluster).num_ignored == 2
    cluster.wait_until(lambda: "child" in cluster.active("demo-0").output, 10, "the second start")
    cluster.active("demo-0").kill()
    assert cluster.wait_for_outcome("demo", 5) == "BackoffLimitExceeded"


def test_names_follow_the_pods_and_a_cut_pod_answers_nobody(cluster: Cluster) -> None:
    listen = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"
    ask = "import urllib.request as r; print(r.urlopen('http://demo-0.band:8000', timeout=1).status)"
    script = f"""
        cd /tmp
        [ $JOB_COMPLETION_INDEX = 0 ] && exec python -c "{listen}"
        while :; do getent hosts demo-0.band | cut -d' ' -f1; python -c "{ask}" 2>&1 | tail -1; sleep 0.3; done
    """
    cluster.apply(job(script))
    cluster.wait_until(lambda: len(cluster.pods) == 2 and "\n200\n" in cluster.pods[1].output, 15, "an answer")
    first, second = cluster.pods
    first.kill()
    cluster.wait_until(lambda: len(cluster.pods) == 3, 10, "the successor")
    successor = cluster.pods[2]
    assert successor.address != first.address
    cluster.wait_until(lambda: f"{successor.address}\n200\n" in second.output, 15, "an answer of the successor")
    successor.cut()
    cluster.wait_until(lambda: second.output.rstrip().endswith("timed out>"), 15, "silence")


def test_a_network_policy_lets_in_whom_it_names_through_the_service(cluster: Cluster) -> None:
    serve = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"
    board: dict[str, Any] = {
        "name": "main",
        "command": ["python", "-c", serve],
        "ports": [{"name": "http", "containerPort": 8000}],
    }
    board["readinessProbe"] = {"httpGet": {"path": "/", "port": "http"}}
    labels = {"part": "board"}
    ask = "import urllib.request as r; print(r.urlopen('http://board', timeout=1).status)"
    cluster.apply(
        [
            {
                "kind": "Deployment",
                "metadata": {"name": "board"},
                "spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": [board]}}},
            },
            {
                "kind": "Service",
                "metadata": {"name": "board"},
                "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": "http"}]},
            },
            {
                "kind": "NetworkPolicy",
                "metadata": {"name": "board"},
                "spec": {
                    "podSelector": {"matchLabels": labels},
                    "ingress": [{"from": [{"podSelector": {"matchLabels": {"part": "friend"}}}], "ports": [{"port": "http"}]}],
                },
            },
        ]
    )
    cluster.wait_until(lambda: any(pod.ready for pod in cluster.pods), 10, "the server")
    cluster.wait_until(lambda: cluster.knows("board"), 5, "its name")
    cluster.apply([plain_pod(name, {"part": name}, ["python", "-c", ask]) for name in ("friend", "stranger")])
    cluster.wait_until(lambda: all(pod.finished for pod in cluster.pods[1:]), 10, "the answers")
    friend, stranger = cluster.pods[1:]
    assert "200" in friend.output
    assert "timed out" in stranger.output


def test_nothing_is_left_of_a_rehearsal_that_was_killed(privacy: None, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tests.rehearsal.cluster import Cluster
from tests.rehearsal.privacy import go_private
from tests.rehearsal.test_cluster import job
go_private()
with Cluster(Path({str(tmp_path)!r})) as cluster:
    cluster.apply(job("echo up; sleep 1000"))
    cluster.wait_until(lambda: all("up" in pod.output for pod in cluster.pods) and len(cluster.pods) == 2, 10, "the start")
    print(*(os.readlink(f"/proc/{{pid}}/ns/net") for pid in cluster.processes()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = run_python("-c", program)
    namespaces = set(killed.stdout.split())
    assert killed.returncode == -9
    assert len(namespaces) == 2
    deadline = time.monotonic() + 5
    while namespaces & set(network_namespaces()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "node").is_dir()
    assert not (tmp_path / "node").is_mount()


def network_namespaces() -> Iterator[str]:
    """That of each process there is."""
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):
            yield os.readlink(entry)
