"""Ranks come and go: a run of changing size has the samples and the losses of one that was never disturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.gang import Gang, command
from tests.faults.outcome import assert_ledger_in_order, last_step
from tests.training import (
    BIN,
    json_lines,
    largest_difference,
    ledger_hash,
    run_path,
    train_losses,
    training_config,
    write_config,
)
from trainer.config import Config

pytestmark = pytest.mark.processes

# So many that there is time for two changes while they are under way.
NUM_STEPS = 800  # so many that a rank alone is still at it when the other one is back
TWO, ONE = "Starting 2 workers: localhost:2.", "Starting 1 worker: localhost:1."


def elastic_run(directory: Path, name: str) -> Config:
    """It saves only where it is asked to: what a change does not save is lost."""
    return training_config(
        directory,
        name,
        model={"dropout": 0.1},
        train={"steps": NUM_STEPS, "micro_batch_size": 2, "steps_per_loop": 2},
        distribution={"backend": "horovod"},
        evaluation={"every": 100},
        checkpoint={"every": 10_000},
    )


class Hosts:
    """The discovery script's answer."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "hosts"
        self.are("localhost:2")

    def are(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(text + "\n")
        new.replace(self.file)

    def start(self, config: Config) -> Gang:
        file = write_config(config, self.file.parent / f"{config.run.name}.yaml")
        discovery = ["--min-workers", "1", "--max-workers", "2", "--discovery", f"cat {self.file}"]
        return Gang(
            [str(BIN / "drumline"), "launch", "horovod", str(file), *discovery, "--restart-pause", "0.5"], self.file.parent
        )


def test_a_rank_taken_away_and_added_back_leaves_the_losses_as_they_were(store: Path, tmp_path: Path, figures: Figures) -> None:
    undisturbed, config = (elastic_run(store, f"elastic-{name}") for name in ("undisturbed", "disturbed"))
    with Gang(command("launch horovod", write_config(undisturbed, tmp_path / "undisturbed.yaml")), tmp_path) as gang:
        assert gang.wait() == 0
    hosts, run = Hosts(tmp_path), run_path(config)
    with hosts.start(config) as gang:
        gang.wait_until(lambda: last_step(run) >= 3)
        hosts.are("localhost:1")
        gang.wait_until(lambda: ONE in gang.output)
        step = last_step(run)
        gang.wait_until(lambda: last_step(run) >= step + 3)
        hosts.are("localhost:2")
        assert gang.wait() == 0
        output = gang.output
    assert "workers 2 -> 1: host localhost has 1 slot; asking the workers to save and stop." in output
    assert output.count(TWO) == 2 and "Restart" not in output
    starts = [line for line in json_lines(run / "ledger.jsonl") if line.get("event") == "start"]
    assert [start["num_replicas"] for start in starts] == [2, 1, 2]
    assert list(train_losses(run)) == list(range(1, NUM_STEPS + 1))
    difference = largest_difference(train_losses(run), train_losses(run_path(undisturbed)))
    assert difference <= 1e-4
    assert ledger_hash(run) == ledger_hash(run_path(undisturbed))
    assert_ledger_in_order(run)
    begun = ", ".join(f"{start['num_replicas']} from step {start['step']}" for start in starts)
    figures.add("elastic, 2 -> 1 -> 2 ranks", ranks=begun, largest_relative_difference_of_losses=difference)


def test_a_killed_rank_is_made_up_for(store: Path, tmp_path: Path) -> None:
    config = elastic_run(store, "elastic-killed")
    run = run_path(config)
    with Hosts(tmp_path).start(config) as gang:
        gang.wait_until(lambda: last_step(run) >= 10)
        gang.send(1, signal.SIGKILL)
        assert gang.wait() == 0
        assert "a worker was ended by SIGKILL. Restart 1 of 3" in gang.output
    assert list(train_losses(run)) == list(range(1, NUM_STEPS + 1))
    assert_ledger_in_order(run)
