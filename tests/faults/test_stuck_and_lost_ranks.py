"""A rank that is stopped, killed or stuck is named, with where it was, and takes the whole run down within the limit."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.gang import LIMIT_SECONDS, Gang, Starter, command
from tests.faults.outcome import last_step
from tests.training import run_path, training_config, write_config
from trainer.config import Config
from trainer.data.corpus import open_corpus

BACKENDS: dict[Starter, str] = {"horovodrun": "horovod", "launch horovod": "horovod", "launch local": "multiworker"}
HUNG, KILLED = 70, 137


def two_ranks(directory: Path, name: str, backend: str) -> Config:
    """A run that would go on for minutes, with a watchdog as quick as it may be set."""
    return training_config(
        directory,
        name,
        train={"steps": 100_000},
        distribution={"backend": backend},
        evaluation={"every": None},
        checkpoint={"every": 100},
        watchdog={"silence_seconds": 5.0, "least_seconds": 10.0},
    )


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("starter", BACKENDS)
def test_a_killed_rank_is_named_and_the_other_leaves(store: Path, figures: Figures, starter: Starter, rank: int) -> None:
    output, exit_codes, exit_code = harm(store, figures, starter, rank, signal.SIGKILL)
    if starter == "horovodrun":
        assert exit_codes == {rank: KILLED, 1 - rank: HUNG}
        assert re.search(rf"rank {rank} of 2 .*is gone: its connection closed during training, steps \d+", output)
    else:  # they may end the other rank before its watchdog has anything to say
        assert exit_code == KILLED
        assert f"Worker {rank} failed with exit code {KILLED}" in output


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("starter", BACKENDS)
def test_a_stopped_rank_is_named_and_the_other_leaves(store: Path, figures: Figures, starter: Starter, rank: int) -> None:
    output, exit_codes, exit_code = harm(store, figures, starter, rank, signal.SIGSTOP)
    if starter == "horovodrun":
        assert exit_codes[1 - rank] == HUNG
    else:
        assert exit_code == HUNG
    assert re.search(rf"1 did not arrive: rank {rank} .*not heard of for \d+ s, last in training, steps \d+", output)
    assert "Stacks of rank-" in output


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_while_it_reads_is_named_with_where_it_is(store: Path, figures: Figures, rank: int) -> None:
    """Its processes and threads live, and it is heard of. Steps 1 to 40 go well: the limit is that of a measured step."""
    name = f"reading-{rank}"
    config = two_ranks(store, name, "horovod")
    batch_size = config.train.global_batch_size
    first_row = 40 * batch_size + rank * batch_size // 2
    samples = open_corpus(config).order.sample_ids(first_row, batch_size // 2).tolist()
    start = command("horovodrun", write_config(config, store / f"{name}.yaml"), fault={"samples": samples, "effect": "hang"})
    with Gang(start, store) as gang:
        gang.wait_until(lambda: last_step(run_path(config)) >= 10)
        gang.wait_until(lambda: stands_still(run_path(config), 2.0))
        since = time.monotonic() - 2.0
        gang.wait(LIMIT_SECONDS)
        seconds = time.monotonic() - since
        output = gang.output
        assert gang.rank_exit_codes == {0: HUNG, 1: HUNG}
    assert re.search(rf"1 did not arrive: rank {rank} .*training, steps \d+ to \d+ \(step 41, waiting for its batch\)", output)
    assert f"hang-rank-{rank:05d}.txt" in {path.name for path in run_path(config).iterdir()}
    figures.add("a rank hangs while reading", **{f"rank_{rank}: seconds_until_all_were_gone": seconds})


def harm(store: Path, figures: Figures, starter: Starter, rank: int, what: signal.Signals) -> tuple[str, dict[int, int], int]:
    """Sends a signal to a rank that trains. Within the limit every process must be gone, orphans too; what they said, and
    the exit codes of the ranks, where they are known, and of the whole."""
    name = f"{what.name}-{starter.replace(' ', '-')}-{rank}"
    config = two_ranks(store, name, BACKENDS[starter])
    with Gang(command(starter, write_config(config, store / f"{name}.yaml")), store) as gang:
        gang.wait_until(lambda: last_step(run_path(config)) >= 20)
        time.sleep(1.5)  # a rank tells the others once a second where it is
        since = time.monotonic()
        gang.send(rank, what)
        exit_code = gang.wait(LIMIT_SECONDS)
        seconds = time.monotonic() - since
        figures.add(f"{what.name} to one of two ranks", **{f"{starter}, rank {rank}: seconds until all were gone": seconds})
        return gang.output, gang.rank_exit_codes, exit_code


def stands_still(run: Path, seconds: float) -> bool:
    step = last_step(run)
    time.sleep(seconds)
    return last_step(run) == step
