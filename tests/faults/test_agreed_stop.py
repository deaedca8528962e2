"""A signal to one rank is obeyed by all of them together: they finish the same step, save it, and leave with 75."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Figures
from tests.faults.gang import Gang, command
from tests.faults.outcome import assert_same_run, good_steps, last_step, num_starts, saved_steps
from tests.training import run_path, training_config, write_config
from trainer.config import Config

NUM_STEPS = 400
EVALUATION_EVERY = 100
RANKS = (0, 1)


def saves_only_when_asked(directory: Path, name: str, batches: int, train: Mapping[str, Any] | None = None) -> Config:
    """So what is saved was asked for. With many `batches` an evaluation takes seconds."""
    return training_config(
        directory,
        name,
        model={"dropout": 0.1},
        train={"steps": NUM_STEPS, "steps_per_loop": 5, **(train or {})},
        distribution={"backend": "horovod"},
        evaluation={"every": EVALUATION_EVERY, "batches": batches},
        checkpoint={"every": 10_000, "keep_last": 10_000},
    )


@dataclass
class Tally:
    stops: int = 0
    in_evaluation: int = 0
    seconds: list[float] = field(default_factory=list)

    def add_to(self, figures: Figures, fault: str) -> None:
        figures.add(
            fault,
            stops=self.stops,
            of_these_in_an_evaluation=self.in_evaluation,
            all_ranks_left_with_75_and_saved_one_step=self.stops,
            seconds_from_signal_to_the_end=f"at most {max(self.seconds):.1f}",
        )


def test_one_rank_hears_a_signal_and_both_save_and_leave(store: Path, figures: Figures) -> None:
    """The quick part: SIGUSR1 to rank 1, which saves and goes on, and then SIGTERM to rank 1, in one start."""
    config = saves_only_when_asked(store, "asked", batches=2, train={"steps": 5000})
    run, tally = run_path(config), Tally()
    with Gang(command("horovodrun", write_config(config, store / "asked.yaml")), store) as gang:
        gang.wait_until(lambda: last_step(run) >= 3)
        gang.send(1, signal.SIGUSR1)
        gang.wait_until(lambda: len(saved_steps(run)) == 1)
        first = saved_steps(run)[0]
        gang.wait_until(lambda: last_step(run) > first)
        stop_and_check(gang, run, 1, signal.SIGTERM, tally)
    assert good_steps(run) == {first, last_step(run)}
    tally.add_to(figures, "SIGTERM to one rank, quick")


@pytest.mark.faults
def test_sigterm_to_one_rank_at_random_moments(store: Path, rounds: int, figures: Figures) -> None:
    """A fifth of the rounds; every second run has long evaluations, in which the signal falls then."""
    references = {}
    # Without long evaluations a run of NUM_STEPS would be over before it is stopped.
    train_of = {2: {"steps": 4 * NUM_STEPS}, 800: {"steps": NUM_STEPS}}
    for batches, train in train_of.items():
        reference = saves_only_when_asked(store, f"unstopped-{batches}", batches, train)
        with Gang(command("horovodrun", write_config(reference, store / f"{reference.run.name}.yaml")), store) as gang:
            assert gang.wait() == 0
        references[batches] = run_path(reference)
    generator, tally = random.Random(rounds), Tally()
    number = 0
    while tally.stops < max(2, rounds // 5):
        number += 1
        batches = 2 if number % 2 else 800
        config = saves_only_when_asked(store, f"stopped-{number}", batches, train_of[batches])
        run, start = run_path(config), command("horovodrun", write_config(config, store / f"{config.run.name}.yaml"))
        for _ in range(3):
            with Gang(start, store) as gang:
                moment = in_an_evaluation(run) if batches > 2 else after_a_step(run, generator.uniform(0.0, 1.5))
                if not gang.wait_until(moment, may_end=True):
                    break
                time.sleep(generator.uniform(0.0, 1.0) if batches > 2 else 0.0)
                stop_and_check(gang, run, generator.choice(RANKS), signal.SIGTERM, tally)
                tally.in_evaluation += batches > 2
        with Gang(start, store) as gang:
            assert gang.wait() == 0
        assert_same_run(run, references[batches])
    tally.add_to(figures, "SIGTERM to one rank")


@pytest.mark.faults
def test_a_second_interrupt_leaves_at_once_also_in_a_long_call(store: Path, figures: Figures) -> None:
    """All steps but the first few are made in one call of TensorFlow, which takes many seconds."""
    config = training_config(
        store,
        "interrupted",
        model={"width": 128},
        train={"steps": 20_000, "steps_per_loop": 20_000, "loop_seconds": 120.0},
        evaluation={"every": None},
        checkpoint={"every": 20_000},
    )
    run = run_path(config)
    with Gang(command("train", write_config(config, store / "interrupted.yaml")), store) as gang:
        gang.wait_until(lambda: last_step(run) >= 2)
        time.sleep(2.0)
        process = gang.pids()[0]
        assert last_step(run) == 2
        os.kill(process, signal.SIGINT)
        time.sleep(0.5)
        assert gang.exit_code is None
        asked = time.monotonic()
        os.kill(process, signal.SIGINT)
        assert gang.wait(5.0) == 75
        seconds = time.monotonic() - asked
        assert "leaving at once" in gang.output and "Traceback" not in gang.output
    assert saved_steps(run) == []
    figures.add("second SIGINT", seconds_until_gone=seconds)


def stop_and_check(gang: Gang, run: Path, rank: int, number: signal.Signals, tally: Tally) -> None:
    """Both ranks leave with 75, and there is a checkpoint of the step that they came to, the only new one."""
    before = set(saved_steps(run))
    asked = time.monotonic()
    gang.send(rank, number)
    gang.wait(60.0)
    tally.seconds.append(time.monotonic() - asked)
    tally.stops += 1
    assert gang.rank_exit_codes == {0: 75, 1: 75}, gang.output[-3000:]
    assert set(saved_steps(run)) - before == {last_step(run)} - before
    assert last_step(run) in good_steps(run)
    assert re.search(rf"stopped after step {last_step(run)}\b", gang.output)
    assert "]<stderr>:Traceback" not in gang.output, gang.output[-3000:]  # horovodrun has one of its own


def after_a_step(run: Path, seconds: float) -> Callable[[], bool]:
    """So many seconds after this start has made a step of its own."""
    starts, step, since = num_starts(run) + 1, last_step(run), [0.0]

    def has_come() -> bool:
        if not since[0] and num_starts(run) == starts and last_step(run) > step:
            since[0] = time.monotonic()
        return bool(since[0]) and time.monotonic() - since[0] >= seconds

    return has_come


def in_an_evaluation(run: Path) -> Callable[[], bool]:
    """When this start stands still at a step at which an evaluation is due, and has not written its result."""
    starts = num_starts(run) + 1
    seen: dict[int, float] = {}

    def has_come() -> bool:
        step = last_step(run)
        if num_starts(run) < starts or not step or step % EVALUATION_EVERY:
            return False
        has_result = f'"step": {step}, "split": "validation"' in (run / "metrics.jsonl").read_text()
        return not has_result and time.monotonic() - seen.setdefault(step, time.monotonic()) > 0.3

    return has_come
