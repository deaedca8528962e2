"""Real trainings under `drumline launch worker`: two and three workers, each on an address of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launch.machine import free_ports
from launch.processes import descendants
from tests.training import (
    BIN,
    ROOT,
    checked,
    environment,
    largest_difference,
    ledger_hash,
    run_command,
    run_path,
    train_losses,
    training_config,
    write_config,
)
from tests.unit.launch_programs import are_gone, becomes_true
from trainer.config import Config

pytestmark = pytest.mark.processes

TOLERANCE = 1e-5
DRUMLINE = str(BIN / "drumline")
# Twelve sequences divide over 1, 2, 3 and 6 ranks.
BATCH = {"global_batch_size": 12}
LONG = {"steps": 100_000, **BATCH}

Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the workers of a job; whatever is left of them is killed in the end."""
    secret = tmp_path / "token"
    secret.write_bytes(os.urandom(16).hex().encode())
    started: list[subprocess.Popen[str]] = []

    def start(config: Config, num_workers: int) -> list[subprocess.Popen[str]]:
        file = write_config(config, tmp_path / f"{config.run.name}.yaml")
        peers = ",".join(f"127.0.0.{number + 2}" for number in range(num_workers))
        place = ["--peers", peers, "--port", str(free_ports(1)[0]), "--job", config.run.name]
        workers = [
            subprocess.Popen(
                [DRUMLINE, "launch", "worker", str(file), *place, "--index", str(index)],
                env=environment(DRUMLINE_SECRET_FILE=str(secret)),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(num_workers)
        ]
        started.extend(workers)
        return workers

    yield start
    for worker in started:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()


@pytest.fixture(scope="module")
def single(prepared: Path) -> Path:
    """The run of one process that the others are compared with."""
    config = training_config(prepared, "workers-single", train=BATCH)
    checked(run_command([DRUMLINE, "train", str(write_config(config, prepared / "workers-single.yaml"))]))
    return run_path(config)


def of_workers(directory: Path, name: str, backend: str, train: Mapping[str, Any] = BATCH, **sections: Any) -> Config:
    return training_config(directory, name, train=train, distribution={"backend": backend, "timeout_seconds": 60.0}, **sections)


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_workers_have_the_losses_of_one_process(backend: str, prepared: Path, start: Start, single: Path) -> None:
    """More workers, with several ranks each, are rehearsed (tests/rehearsal)."""
    config = of_workers(prepared, f"workers-{backend}", backend)
    for worker in start(config, 2):
        out, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0, out
    losses = train_losses(run_path(config))
    difference = largest_difference(losses, train_losses(single))
    print(f"\nlargest relative difference of {len(losses)} losses, {backend}: {difference:.1e}")
    assert difference <= TOLERANCE
    assert ledger_hash(run_path(config)) == ledger_hash(single)


def test_two_jobs_side_by_side_do_not_disturb_each_other(prepared: Path, start: Start, single: Path) -> None:
    configs = [of_workers(prepared, f"workers-beside-{number}", "horovod") for number in range(2)]
    workers = [worker for config in configs for worker in start(config, 2)]
    for worker in workers:
        out, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0, out
        assert "refused" not in out
    for config in configs:
        assert largest_difference(train_losses(run_path(config)), train_losses(single)) <= TOLERANCE


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_sigterm_to_one_worker_has_all_save_and_leave_with_75_and_go_on(
    backend: str, prepared: Path, start: Start, single: Path
) -> None:
    config = of_workers(prepared, f"workers-stopped-{backend}", backend, LONG)
    workers = start(config, 2)
    wait_for_step(config, workers)
    pids = ranks_of(workers)
    workers[1].terminate()
    for worker in workers:
        out, _ = worker.communicate(timeout=120)
        assert worker.returncode == 75, out
    assert are_gone(pids)
    stopped = list(train_losses(run_path(config)))
    resumed = of_workers(prepared, f"workers-stopped-{backend}", backend, {"steps": max(stopped) + 5, **BATCH})
    for worker in start(resumed, 2):
        out, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0, out
    assert list(train_losses(run_path(resumed))) == list(range(1, max(stopped) + 6))


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_after_kill_9_of_a_worker_the_others_leave_with_70_and_nothing_is_left(
    backend: str, prepared: Path, start: Start
) -> None:
    """A rank alone is killed in tests/faults/test_lost_machines.py."""
    config = of_workers(prepared, f"workers-killed-{backend}", backend, LONG, watchdog={"silence_seconds": 5.0})
    workers = start(config, 2)
    wait_for_step(config, workers)
    pids = ranks_of(workers)
    os.kill(workers[1].pid, signal.SIGKILL)
    out, _ = workers[0].communicate(timeout=120)
    assert workers[0].returncode == 70, out
    assert re.search(r"rank 1|worker 1", out)
    workers[1].communicate(timeout=60)
    assert workers[1].returncode == -signal.SIGKILL
    assert are_gone(pids)


def test_a_mistake_that_only_a_rank_finds_makes_its_worker_leave_with_2(prepared: Path, start: Start) -> None:
    missing = str(prepared / "missing")
    config = of_workers(prepared, "workers-mistaken", "horovod", data={"store": missing})
    told = [(worker.communicate(timeout=120)[0], worker.returncode) for worker in start(config, 2)]
    assert {code for _, code in told} <= {2, 70}
    assert any(code == 2 and missing in out for out, code in told)


def wait_for_step(config: Config, workers: list[subprocess.Popen[str]], seconds: float = 120.0) -> None:
    """Waits until the run has logged its first steps."""
    metrics = run_path(config) / "metrics.jsonl"

    def has_steps() -> bool:
        assert all(worker.poll() is None for worker in workers), "a worker has ended"
        return metrics.exists() and metrics.read_text().count("\n") >= 10

    assert becomes_true(has_steps, seconds)
    time.sleep(0.5)


def ranks_of(workers: list[subprocess.Popen[str]]) -> list[int]:
    """The workers' ranks, and all that these have started."""
    return [pid for worker in workers for pid in descendants(worker.pid)]
