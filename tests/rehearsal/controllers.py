"""Controllers: what makes pods of Jobs, Deployments, JobSets and MPIJobs, and again where they have failed.

The rules are those of kubernetes/pkg/controller/job, kubernetes-sigs/jobset and kubeflow/mpi-operator (0.6). Only the pauses
before pods are made again are shorter.
"""

from __future__ import annotations

import random
import string
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from tests.rehearsal.pods import Pod
from tests.rehearsal.volumes import Manifest

if TYPE_CHECKING:
    from tests.rehearsal.cluster import Cluster

# Kubernetes waits 10 s before the first, and each further time twice as long.
RETRY_SECONDS = 1.0
_JOB_KEYS = {"parallelism", "completions", "completionMode", "backoffLimit", "podFailurePolicy", "podReplacementPolicy"}
_JOB_KEYS |= {"backoffLimitPerIndex", "template", "suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds"}

_JOBSET_KEYS = {"replicatedJobs", "network", "failurePolicy", "suspend", "ttlSecondsAfterFinished"}


class JobController:
    """A Job of batch/v1. `num_failures` are those that count towards its limit, `num_ignored` those that do not."""

    def __init__(self, cluster: Cluster, job: Manifest) -> None:
        self._cluster, self._spec = cluster, job["spec"]
        self._name, self._namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        _refuse_the_unknown(self._spec, _JOB_KEYS, "a Job")
        self._is_indexed = self._spec.get("completionMode") == "Indexed"
        self._completions = self._spec.get("completions", 1)
        assert self._is_indexed or self._completions == 1, "a Job of several pods that are not indexed"
        self.outcome: str | None = None
        self.num_failures = self.num_ignored = 0
        self.pods: list[Pod] = []
        self._current: dict[int, Pod] = {}
        self._succeeded: set[int] = set()
        self._failures_of = Counter[int]()
        self._not_before = 0.0
        self._began = time.monotonic()

    def step(self) -> None:
        if self.outcome is not None or self._spec.get("suspend"):
            return
        for index, pod in [*self._current.items()]:
            if pod.finished:
                del self._current[index]
                self._judge(index, pod)
        self.outcome = self.outcome or self._conclude()
        if self.outcome is not None:
            self.delete_pods()
        elif time.monotonic() >= self._not_before:
            self._create_missing()

    def delete_pods(self) -> None:
        for pod in self._current.values():
            pod.delete()

    def _conclude(self) -> str | None:
        restarts = sum(pod.num_restarts for pod in self.pods)
        limit = self._spec.get("backoffLimit", float("inf") if "backoffLimitPerIndex" in self._spec else 6)
        if self.num_failures + restarts > limit:
            return "BackoffLimitExceeded"
        if time.monotonic() - self._began > self._spec.get("activeDeadlineSeconds", float("inf")):
            return "DeadlineExceeded"
        if len(self._succeeded) + len(self._given_up()) == self._completions:
            return "FailedIndexes" if self._given_up() else "Complete"
        return None

    def _given_up(self) -> list[int]:
        """The indexes that have failed more often than each of them may."""
        limit = self._spec.get("backoffLimitPerIndex", float("inf"))
        return [index for index, number in self._failures_of.items() if number > limit]

    def _judge(self, index: int, pod: Pod) -> None:
        if pod.phase == "Succeeded":
            self._succeeded.add(index)
            return
        action, why = match_failure_policy(self._spec.get("podFailurePolicy"), pod)
        self._not_before = time.monotonic() + RETRY_SECONDS
        match action:
            case "FailJob":
                self.outcome = f"PodFailurePolicy: {why}"
            case "Ignore":
                self.num_ignored += 1
            case "Count":
                self.num_failures += 1
                self._failures_of[index] += 1

    def _create_missing(self) -> None:
        # With a policy for failures a pod is replaced when it is over (podReplacementPolicy: Failed is the only value then).
        for index in range(self._completions):
            if len(self._current) >= self._spec.get("parallelism", 1):
                return
            if index not in {*self._succeeded, *self._current, *self._given_up()}:
                self._current[index] = self._create(index)
                self.pods.append(self._current[index])

    def _create(self, index: int) -> Pod:
        template = deepcopy(dict(self._spec["template"]))
        metadata = template.setdefault("metadata", {})
        labels = metadata.setdefault("labels", {})
        labels |= {"batch.kubernetes.io/job-name": self._name, "job-name": self._name}
        if not self._is_indexed:
            return self._cluster.create_pod(f"{self._name}-{random_suffix()}", self._namespace, template)
        labels["batch.kubernetes.io/job-completion-index"] = str(index)
        template["spec"]["hostname"] = f"{self._name}-{index}"
        field = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": field}})
        name = f"{self._name}-{index}-{random_suffix()}"
        annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
        return self._cluster.create_pod(name, self._namespace, template, annotations)


class DeploymentController:
    """A Deployment: so many pods, whatever becomes of them. It has no outcome."""

    def __init__(self, cluster: Cluster, deployment: Manifest) -> None:
        self._cluster, self._metadata, self._spec = cluster, deployment["metadata"], deployment["spec"]
        self.outcome: str | None = None
        self.pods: list[Pod] = []

    def step(self) -> None:
        if sum(not pod.finished and not pod.deleted for pod in self.pods) < self._spec.get("replicas", 1):
            name = f"{self._metadata['name']}-{random_suffix()}"
            self.pods.append(self._cluster.create_pod(name, self._metadata["namespace"], self._spec["template"]))


class JobSetController:
    """A JobSet of jobset.x-k8s.io/v1alpha2: Jobs that start again together when one of them fails."""

    def __init__(self, cluster: Cluster, jobset: Manifest) -> None:
        self._cluster, self._metadata, self._spec = cluster, jobset["metadata"], jobset["spec"]
        self._name = self._metadata["name"]
        _refuse_the_unknown(self._spec, _JOBSET_KEYS, "a JobSet")
        network = self._spec.get("network", {})
        self._subdomain = network.get("subdomain", self._name)
        self.outcome: str | None = None
        self.num_restarts = 0
        self._jobs: list[JobController] = []
        self._restarting = False
        if network.get("enableDNSHostnames", True):
            selector = {"jobset.sigs.k8s.io/jobset-name": self._name}
            publish = network.get("publishNotReadyAddresses", True)
            cluster.apply([_headless_service(self._subdomain, self._metadata["namespace"], selector, publish)])

    @property
    def pods(self) -> list[Pod]:
        return [pod for pod in self._cluster.pods if pod.labels.get("jobset.sigs.k8s.io/jobset-name") == self._name]

    def step(self) -> None:
        if self.outcome is not None or self._spec.get("suspend"):
            return
        if self._restarting and all(pod.finished for pod in self.pods):
            self._restarting, self._jobs = False, []
        if self._restarting:
            return
        self._jobs = self._jobs or [*self._make_jobs()]
        for job in self._jobs:
            job.step()
        failed = [job.outcome for job in self._jobs if job.outcome not in (None, "Complete")]
        if failed:
            self._after_a_failure(str(failed[0]))
        elif all(job.outcome == "Complete" for job in self._jobs):
            self.outcome = "Complete"

    def _after_a_failure(self, why: str) -> None:
        policy = self._spec.get("failurePolicy", {})
        action = "RestartJobSet"
        for rule in policy.get("rules", []):
            reasons = rule.get("onJobFailureReasons", [])
            if not reasons or why.partition(":")[0] in reasons:
                action = rule["action"]
                break
        if action == "FailJobSet" or (action == "RestartJobSet" and self.num_restarts >= policy.get("maxRestarts", 0)):
            self.outcome = f"FailedJobs: {why}"
        else:
            self.num_restarts += action == "RestartJobSet"
            self._restarting = True
        for job in self._jobs:
            job.delete_pods()

    def _make_jobs(self) -> Sequence[JobController]:
        jobs = []
        for replicated in self._spec["replicatedJobs"]:
            for index in range(replicated.get("replicas", 1)):
                spec = deepcopy(dict(replicated["template"]["spec"]))
                name = f"{self._name}-{replicated['name']}-{index}"
                labels = {"jobset-name": self._name, "replicatedjob-name": replicated["name"], "job-index": str(index)}
                metadata = spec["template"].setdefault("metadata", {})
                metadata.setdefault("labels", {}).update({f"jobset.sigs.k8s.io/{key}": each for key, each in labels.items()})
                spec["template"]["spec"]["subdomain"] = self._subdomain
                job = {"metadata": {"name": name, "namespace": self._metadata["namespace"]}, "spec": spec}
                jobs.append(JobController(self._cluster, job))
        return jobs


class MPIJobController:
    """An MPIJob of kubeflow.org/v2beta1: a launcher, which is a Job of one pod, and workers, which are pods of their own.

    Workers that fail are not made again. When the launcher is over, so is everything.
    """

    def __init__(self, cluster: Cluster, mpijob: Manifest) -> None:
        self._cluster, self._metadata, self._spec = cluster, mpijob["metadata"], mpijob["spec"]
        self._name, self._namespace = self._metadata["name"], self._metadata["namespace"]
        self.outcome: str | None = None
        self._run_policy = self._spec.get("runPolicy", {})
        selector = self._labels()
        # The operator 0.6 publishes the names of ready pods alone; 0.7 all, where the launcher works too.
        cluster.apply([_headless_service(self._name, self._namespace, selector, publish=False)])
        self._workers: list[Pod] = []
        self._launcher: JobController | None = None

    @property
    def pods(self) -> list[Pod]:
        return [*self._workers, *(self._launcher.pods if self._launcher else [])]

    def step(self) -> None:
        if self.outcome is not None or self._run_policy.get("suspend"):
            return
        replicas = self._spec["mpiReplicaSpecs"].get("Worker", {}).get("replicas", 0)
        for index in range(len(self._workers), replicas):
            template = self._template("Worker", f"{self._name}-worker-{index}", str(index))
            self._workers.append(self._cluster.create_pod(f"{self._name}-worker-{index}", self._namespace, template))
        waits = self._spec.get("launcherCreationPolicy") == "WaitForWorkersReady"
        if self._launcher is None and (not waits or all(pod.ready for pod in self._workers)):
            self._launcher = self._make_launcher()
        if self._launcher is not None:
            self._launcher.step()
            self.outcome = self._launcher.outcome
        if self.outcome is not None and self._run_policy.get("cleanPodPolicy", "None") != "None":
            for pod in self._workers:
                pod.delete()

    def _make_launcher(self) -> JobController:
        name = f"{self._name}-launcher"
        keys = ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
        spec = {key: self._run_policy[key] for key in keys if key in self._run_policy}
        spec["template"] = self._template("Launcher", name, None)
        return JobController(self._cluster, {"metadata": {"name": name, "namespace": self._namespace}, "spec": spec})

    def _template(self, role: str, hostname: str, index: str | None) -> dict[str, Any]:
        replica = self._spec["mpiReplicaSpecs"][role]
        template = deepcopy(dict(replica["template"]))
        labels = template.setdefault("metadata", {}).setdefault("labels", {})
        labels |= {**self._labels(), "training.kubeflow.org/job-role": role.lower()}
        if index is not None:
            labels["training.kubeflow.org/replica-index"] = index
        policy = replica.get("restartPolicy", "Never")
        template["spec"] |= {"hostname": hostname, "subdomain": self._name}
        template["spec"]["restartPolicy"] = "Never" if policy == "ExitCode" else policy
        return template

    def _labels(self) -> dict[str, str]:
        return {"training.kubeflow.org/operator-name": "mpi-operator", "training.kubeflow.org/job-name": self._name}


def match_failure_policy(policy: Manifest | None, pod: Pod) -> tuple[str, str]:
    """What the first rule that matches a failed pod says: FailJob, Ignore or Count; and why (pod_failure_policy.go)."""
    for number, rule in enumerate((policy or {}).get("rules", [])):
        if "onExitCodes" in rule:
            for container, code in _containers_first(pod).items():
                if _matches_code(rule["onExitCodes"], container, code):
                    return rule["action"], f"container {container} of {pod.name} failed with exit code {code}, rule {number}"
        for condition in rule.get("onPodConditions", []):
            if condition["type"] in pod.conditions and condition.get("status", "True") == "True":
                return rule["action"], f"{pod.name} has the condition {condition['type']}, rule {number}"
    return "Count", "no rule"


def _containers_first(pod: Pod) -> dict[str, int]:
    """The exit codes that a policy looks at: init containers' after the others'."""
    names = [each["name"] for each in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]]
    return {name: pod.exit_codes[name] for name in names if name in pod.exit_codes}


def _matches_code(rule: Mapping[str, Any], container: str, code: int) -> bool:
    if code == 0 or rule.get("containerName", container) != container:
        return False
    return (code in rule["values"]) == (rule["operator"] == "In")


def _headless_service(name: str, namespace: str, selector: Mapping[str, str], publish: bool) -> Manifest:
    spec = {"clusterIP": "None", "selector": selector, "publishNotReadyAddresses": publish}
    return {"kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def _refuse_the_unknown(spec: Manifest, known: set[str], what: str) -> None:
    if unknown := set(spec) - known:
        raise NotImplementedError(f"fields of {what} that the rehearsal does not know: {', '.join(sorted(unknown))}")


def random_suffix() -> str:
    """What controllers put behind the names of pods."""
    return "".join(random.choices(string.ascii_lowercase + string.digits, k=5))
