"""Ranks come and go: a run of changing size has the samples and the losses of one that was never disturbed."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch.processes import descendants
from tests.integration.test_resume import TRAIN, forty_steps, last_step
from tests.training import (
    BIN,
    ROOT,
    checked,
    environment,
    json_lines,
    largest_difference,
    ledger_hash,
    run_command,
    run_path,
    train_losses,
    write_config,
)
from trainer.config import Config

LAUNCH = [str(BIN / "drumline"), "launch", "horovod"]
# What the launcher may take to see a change, to have it saved, and to start TensorFlow again, on two cores with others.
PATIENCE_SECONDS = 120.0
NUM_STEPS = 300


class Elastic:
    """A launcher with a file for a discovery script, and what it says."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.hosts, self.log = folder / "hosts", folder / "log"
        self.say("localhost:2")
        with self.log.open("w") as log:
            discovery = ["--min-workers", "1", "--max-workers", "2", "--discovery", f"cat {self.hosts}"]
            argv = [*command, *discovery, "--restart-pause", "0.5"]
            self.process = subprocess.Popen(argv, env=environment(), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def say(self, hosts: str) -> None:
        new = self.hosts.with_suffix(".new")
        new.write_text(hosts + "\n")
        new.replace(self.hosts)

    def wait_for_step(self, run: Path, step: int, starting: str, times: int) -> None:
        """Waits until the launcher has started so many gangs of a kind, and the run has come to a step."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.log.read_text().count(starting) < times or last_step(run) < step:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def end(self) -> str:
        assert self.process.wait(timeout=PATIENCE_SECONDS) == 0, self.log.read_text()
        return self.log.read_text()

    def kill(self) -> None:
        for pid in descendants(self.process.pid):
            subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
        self.process.kill()
        self.process.wait()


def many_steps(directory: Path, name: str) -> Config:
    """So many that there is time for two changes while they are under way."""
    config = forty_steps(directory, name, "horovod", every=1000)
    train = config.train.model_copy(update={"steps": NUM_STEPS, "micro_batch_size": 2, "steps_per_loop": 2})
    return config.model_copy(update={"train": train, "evaluation": config.evaluation.model_copy(update={"every": 100})})


@pytest.mark.processes
def test_a_rank_taken_away_and_added_back_leaves_the_losses_as_they_were(prepared: Path, tmp_path: Path) -> None:
    undisturbed, config = (many_steps(prepared, f"elastic-{name}") for name in ("undisturbed", "disturbed"))
    horovodrun = [str(BIN / "horovodrun"), "-np", "2", *TRAIN]
    checked(run_command([*horovodrun, str(write_config(undisturbed, prepared / "elastic-undisturbed.yaml"))]))
    run = run_path(config)
    elastic = Elastic([*LAUNCH, str(write_config(config, prepared / "elastic.yaml"))], tmp_path)
    try:
        elastic.wait_for_step(run, 3, "Starting 2 workers: localhost:2.", 1)
        elastic.say("localhost:1")
        elastic.wait_for_step(run, last_step(run), "Starting 1 worker: localhost:1.", 1)
        elastic.wait_for_step(run, last_step(run) + 3, "Starting 1 worker: localhost:1.", 1)
        elastic.say("localhost:2")
        text = elastic.end()
    finally:
        elastic.kill()
    assert "workers 2 -> 1: host localhost has 1 slot; asking the workers to save and stop." in text
    assert "Restart" not in text
    starts = [line for line in json_lines(run / "ledger.jsonl") if line.get("event") == "start"]
    difference = largest_difference(train_losses(run), train_losses(run_path(undisturbed)))
    steps = [start["step"] for start in starts]
    print(f"\nbegun at steps {steps}: largest relative difference of {NUM_STEPS} losses {difference:.1e}")
    assert [start["num_replicas"] for start in starts] == [2, 1, 2]
    assert difference <= 1e-4
    assert ledger_hash(run) == ledger_hash(run_path(undisturbed))


@pytest.mark.processes
def test_a_killed_rank_is_made_up_for(prepared: Path, tmp_path: Path) -> None:
    config = forty_steps(prepared, "elastic-killed", "horovod")
    run = run_path(config)
    elastic = Elastic([*LAUNCH, str(write_config(config, prepared / "elastic-killed.yaml"))], tmp_path)
    try:
        elastic.wait_for_step(run, 10, "Starting 2 workers: localhost:2.", 1)
        victim = next(pid for pid in descendants(elastic.process.pid) if is_rank(pid, 1))
        subprocess.run(["kill", f"-{signal.SIGKILL:d}", str(victim)], check=True)
        text = elastic.end()
    finally:
        elastic.kill()
    assert "a worker was ended by SIGKILL. Restart 1 of 3" in text
    assert list(train_losses(run)) == list(range(1, 41))


def is_rank(pid: int, rank: int) -> bool:
    try:
        return f"HOROVOD_RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
