"""A run that is killed, at whatever moment, goes on from its last checkpoint and ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from tests.faults.conftest import Figures
from tests.faults.gang import LIMIT_SECONDS, Gang, command
from tests.faults.outcome import assert_same_run, good_steps, half_done_saves, last_step, num_starts
from tests.training import run_path, training_config, write_config
from trainer.config import Config

NUM_STEPS = 300


def saves_often(directory: Path, name: str, backend: str = "horovod", steps: int = NUM_STEPS) -> Config:
    """A checkpoint every two steps, all of which stay: so a good one that is gone is one that was lost. The model is of some
    megabytes, so that a save takes long enough to be met."""
    return training_config(
        directory,
        name,
        model={"width": 128, "dropout": 0.1},
        train={"steps": steps, "steps_per_loop": 3},
        distribution={"backend": backend},
        evaluation={"every": 50, "batches": 2},
        checkpoint={"every": 2, "keep_last": 10_000},
    )


@dataclass
class Tally:
    """What the kills were, and what they cost."""

    kills: int = 0
    during_saves: int = 0  # that left one half done
    of_one_rank: int = 0
    starts: int = 0
    runs: int = 0
    steps_lost: list[int] = field(default_factory=list)
    seconds_until_gone: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add_to(self, figures: Figures, fault: str) -> None:
        gone = self.seconds_until_gone
        figures.add(
            fault,
            kills=self.kills,
            of_these_during_a_save=self.during_saves,
            of_these_of_one_rank=self.of_one_rank,
            runs_to_the_end=self.runs,
            starts=self.starts,
            steps_lost_on_average=statistics.mean(self.steps_lost),
            good_checkpoints_lost=0,
            seconds_until_all_were_gone=f"median {statistics.median(gone):.2f}, at most {max(gone):.1f}",
            seconds=time.monotonic() - self.began,
        )


def test_killed_while_it_saves_it_goes_on_to_the_same_end(store: Path, tensorflow: ModuleType, figures: Figures) -> None:
    """The quick part: one process, killed once; what comes before and after in this process, which has TensorFlow loaded."""
    from trainer.loop import train

    reference, killed = (saves_often(store, f"one-{name}", "single", steps=60) for name in ("uncut", "killed"))
    train(reference)
    tally = Tally(runs=1)
    file = write_config(killed, store / "one-killed.yaml")
    kill_once(command("train", file), store, run_path(killed), tally, lambda: while_it_saves(run_path(killed), 0.0))
    assert tally.kills == 1, "the run ended before a save was met"
    train(killed)
    assert_same_run(run_path(killed), run_path(reference))
    tally.add_to(figures, "kill -9, one process")


@pytest.mark.faults
def test_two_ranks_killed_at_random_moments_lose_no_bit_and_no_checkpoint(store: Path, rounds: int, figures: Figures) -> None:
    reference = saves_often(store, "uncut")
    with Gang(command("launch horovod", write_config(reference, store / "uncut.yaml")), store) as gang:
        assert gang.wait() == 0
    generator, tally = random.Random(rounds), Tally()
    while tally.kills < rounds:
        tally.runs += 1
        config = saves_often(store, f"killed-{tally.runs}")
        run, start = run_path(config), command("launch horovod", write_config(config, store / f"{config.run.name}.yaml"))
        while last_step(run) < NUM_STEPS and tally.kills < rounds:
            kill_once(start, store, run, tally, random_moment(run, generator), random_victim(generator))
            print(f"run {tally.runs}, kill {tally.kills}: at step {last_step(run)}, during saves {tally.during_saves}")
        with Gang(start, store) as gang:
            assert gang.wait() == 0
        assert_same_run(run, run_path(reference))
    tally.add_to(figures, "kill -9, two ranks")


def kill_once(
    start: list[str],
    directory: Path,
    run: Path,
    tally: Tally,
    moment: Callable[[], Callable[[], bool]],
    victim: int | None = None,
) -> None:
    """Starts a run and kills it, all of it or one rank, when `moment` says so. After that every checkpoint is good, and
    those that were there before still are."""
    before, half_done_before = good_steps(run), half_done_saves(run)
    tally.starts += 1
    with Gang(start, directory) as gang:
        has_come = moment()
        if not gang.wait_until(has_come, may_end=True):
            assert gang.wait() == 0, gang.output[-3000:]
            return
        killed = time.monotonic()
        if victim is not None and has_ranks(gang):
            gang.send(victim, signal.SIGKILL)
            gang.wait(LIMIT_SECONDS)
            tally.of_one_rank += 1
        else:
            gang.kill()
        tally.seconds_until_gone.append(time.monotonic() - killed)
    tally.kills += 1
    tally.during_saves += bool(half_done_saves(run) - half_done_before)
    after = good_steps(run)
    assert before <= after, f"good checkpoints are gone: {sorted(before - after)}"
    tally.steps_lost.append(last_step(run) - max(after, default=0))


def while_it_saves(run: Path, seconds: float) -> Callable[[], bool]:
    """The first save that is seen so many seconds after the run has made a step of its own."""
    has_waited, before = after_a_step(run, seconds), half_done_saves(run)
    return lambda: has_waited() and bool(half_done_saves(run) - before)


def after_a_step(run: Path, seconds: float) -> Callable[[], bool]:
    """So many seconds after the run has made a step beyond those that it began with."""
    starts, since = num_starts(run) + 1, [0.0]

    def has_come() -> bool:
        if not since[0]:
            if num_starts(run) < starts or last_step(run) <= max(good_before, default=0):
                return False
            since[0] = time.monotonic()
        return time.monotonic() - since[0] >= seconds

    good_before = good_steps(run)
    return has_come


def random_moment(run: Path, generator: random.Random) -> Callable[[], Callable[[], bool]]:
    """Of ten kills five fall into a save, four anywhere after the first step, and one while the run starts."""
    kind = generator.choices(("saving", "training", "starting"), (5, 4, 1))[0]
    if kind == "saving":
        seconds = generator.uniform(0.0, 1.5)
        return lambda: while_it_saves(run, seconds)
    if kind == "training":
        seconds = generator.uniform(0.0, 2.0)
        return lambda: after_a_step(run, seconds)
    until = time.monotonic() + generator.uniform(0.0, 12.0)
    return lambda: lambda: time.monotonic() >= until


def random_victim(generator: random.Random) -> int | None:
    """All processes more often than one rank: that takes the other rank some seconds to notice."""
    return generator.choices((None, 0, 1), (3, 1, 1))[0]


def has_ranks(gang: Gang) -> bool:
    try:
        gang.rank(0), gang.rank(1)
    except AssertionError:
        return False
    return True
