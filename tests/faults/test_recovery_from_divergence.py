"""A loss that is not a number never reaches the weights of any rank; a run that diverges goes back, over the samples that led
there, and trains to its end.

The faults are tied to samples by their ids (train_with_fault.py): a run that steps over them is rid of them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.faults.conftest import Figures
from tests.faults.gang import Gang, command
from tests.faults.outcome import assert_ledger_in_order, good_steps, rollbacks
from tests.training import json_lines, run_path, train_losses, training_config, write_config
from trainer.checkpoint import list_checkpoints, read_checkpoint
from trainer.config import Config
from trainer.data.corpus import open_corpus

NUM_STEPS = 48
BATCH_SIZE = 8
SECOND_HALF = slice(BATCH_SIZE // 2, BATCH_SIZE)  # the rows of rank 1


def goes_wrong(directory: Path, name: str, backend: str = "horovod", **divergence: Any) -> Config:
    """A short run, less than an epoch of it, that saves every four steps."""
    return training_config(
        directory,
        name,
        optimizer={"learning_rate": 1e-3},
        train={"steps": NUM_STEPS, "steps_per_loop": 3},
        distribution={"backend": backend} | ({"num_replicas": 2} if backend == "mirrored" else {}),
        evaluation={"every": 24},
        checkpoint={"every": 4, "keep_last": 100},
        divergence=divergence,
    )


def samples_of(config: Config, steps: Sequence[int], rows: slice = SECOND_HALF) -> list[int]:
    """The ids that these rows of these updates (from 1) have in the run's first course."""
    corpus = open_corpus(config)
    assert corpus.order.num_samples >= NUM_STEPS * BATCH_SIZE, "a second epoch would bring the bad samples again"
    return [id for step in steps for id in corpus.order.sample_ids((step - 1) * BATCH_SIZE, BATCH_SIZE)[rows].tolist()]


def test_a_loss_that_is_not_a_number_on_one_replica_is_skipped_on_both(
    store: Path, tensorflow: ModuleType, caplog: pytest.LogCaptureFixture, figures: Figures
) -> None:
    """The quick part: in this process, on two replicas, of which one meets it."""
    from tests.faults.train_with_fault import fault, watched_weights
    from trainer.loop import train

    config = goes_wrong(store, "replica-nan", "mirrored", max_skipped_in_a_row=3)
    with (
        caplog.at_level(logging.WARNING),
        fault(samples_of(config, (9, 10, 30)), math.nan),
        watched_weights() as seen,
    ):
        train(config)
    assert_skipped(run_path(config), (9, 10, 30))
    assert "step 9: loss nan" in caplog.text
    assert seen and all(is_finite for is_finite, _ in seen)
    figures.add("NaN on one replica", updates_skipped=3, calls_after_which_weights_were_not_finite=0, rollbacks=0)


@pytest.mark.faults
def test_a_loss_that_is_not_a_number_on_one_rank_is_skipped_on_both(store: Path, figures: Figures) -> None:
    config = goes_wrong(store, "rank-nan", max_skipped_in_a_row=3)
    exit_code, output, seen = train_on_two_ranks(config, store, samples_of(config, (9, 10, 30)), math.nan)
    assert exit_code == 0, output
    assert_skipped(run_path(config), (9, 10, 30))
    figures.add(
        "NaN on one of two ranks",
        updates_skipped=3,
        calls_compared=len(seen),
        calls_after_which_weights_differed_or_were_not_finite=0,
    )


@pytest.mark.faults
def test_too_many_in_a_row_go_back_and_over_the_samples_that_led_there(store: Path, figures: Figures) -> None:
    config = goes_wrong(store, "rank-nan-often", max_skipped_in_a_row=3)
    bad = samples_of(config, (18, 19, 20, 21))
    exit_code, output, _ = train_on_two_ranks(config, store, bad, math.nan)
    assert exit_code == 0, output
    run = run_path(config)
    (rollback,) = rollbacks(run)
    assert (rollback["from_step"], rollback["to_step"]) == (21, 16)
    assert (rollback["first_sample"], rollback["num_samples"]) == (16 * BATCH_SIZE, 5 * BATCH_SIZE)
    assert "diverged: went back from step 21 to 16" in output
    assert_trained_to_the_end(run)
    assert None not in train_losses(run).values()  # as metrics.jsonl has what is not a number
    figures.add("NaN, four updates in a row", rollbacks=1, samples_stepped_over=rollback["num_samples"], exit_code=0)


@pytest.mark.faults
def test_a_spike_goes_back_and_over_the_samples_that_led_there(store: Path, figures: Figures) -> None:
    config = goes_wrong(store, "spike", max_skipped_in_a_row=3, spike_deviations=12.0, spike_window=8)
    exit_code, output, _ = train_on_two_ranks(config, store, samples_of(config, (30,)), 30.0)
    assert exit_code == 0, output
    run = run_path(config)
    (rollback,) = rollbacks(run)
    assert (rollback["from_step"], rollback["to_step"]) == (30, 28)
    assert "above the bound" in rollback["reason"]
    assert_trained_to_the_end(run)
    assert max(list(train_losses(run).values())[20:]) < 5.0
    figures.add("loss spike", rollbacks=1, samples_stepped_over=rollback["num_samples"], exit_code=0)


@pytest.mark.faults
def test_when_going_back_does_not_help_it_ends_with_3_and_says_what_was_tried(store: Path, figures: Figures) -> None:
    config = goes_wrong(store, "hopeless", max_skipped_in_a_row=1, max_rollbacks=2)
    bad = samples_of(config, range(14, NUM_STEPS + 1))
    exit_code, output, _ = train_on_two_ranks(config, store, bad, math.nan)
    assert exit_code == 3, output
    run = run_path(config)
    assert len(rollbacks(run)) == 2
    told = next(line for line in output.splitlines() if "that is as often as divergence.max_rollbacks allows" in line)
    assert told.count("; went back from step") == 2 and "skipped updates in a row" in told
    assert "]<stderr>:Traceback" not in output
    for step in good_steps(run):
        weights = read_checkpoint(run / "checkpoints" / f"step-{step:08d}").weights
        assert all(np.isfinite(weight).all() for weight in weights.values())
    assert_ledger_in_order(run)
    figures.add("divergence for good", rollbacks=2, exit_code=exit_code)


@pytest.mark.faults
def test_a_float16_overflow_only_lowers_the_loss_scale(store: Path, tensorflow: ModuleType, figures: Figures) -> None:
    from trainer.loop import train

    config = training_config(
        store,
        "overflow",
        train={"steps": 60, "precision": "float16", "initial_loss_scale": 2.0**40},
        checkpoint={"every": 10, "keep_last": 100},
        divergence={"max_skipped_in_a_row": 0, "max_rollbacks": 0},
    )
    train(config)
    run = run_path(config)
    lines = [line for line in json_lines(run / "metrics.jsonl") if line["split"] == "train"]
    scales = [line["loss_scale"] for line in lines]
    assert scales[0] == 2.0**40 and scales[-1] < 2.0**24 and scales == sorted(scales, reverse=True)
    assert lines[-1]["skipped_updates"] == 0
    assert rollbacks(run) == []
    assert_trained_to_the_end(run, 60)
    figures.add("float16 overflow", loss_scale=f"2^40 -> 2^{math.log2(scales[-1]):g}", rollbacks=0)


def train_on_two_ranks(
    config: Config, directory: Path, samples: Sequence[int], effect: float
) -> tuple[int, str, list[list[Any]]]:
    """Trains with the fault. The ranks' exit code, what they said, and what the watch saw of the weights, which after each
    call must be finite and the same on both ranks."""
    file = write_config(config, directory / f"{config.run.name}.yaml")
    fault = {"samples": list(samples), "effect": str(effect)}
    with Gang(command("horovodrun", file, fault=fault), directory) as gang:
        gang.wait()
        codes = gang.rank_exit_codes
        assert codes[0] == codes[1], f"{codes}\n{gang.output}"
        seen = [json.loads((gang.directory / f"weights-{rank}.json").read_text()) for rank in (0, 1)]
        assert seen[0] == seen[1], "the ranks' weights differ"
        assert seen[0] and all(is_finite for is_finite, _ in seen[0])
        return codes[0], gang.output, seen[0]


def assert_skipped(run: Path, steps: Sequence[int]) -> None:
    """Exactly these updates were skipped: logged with what they saw, counted, noted in the ledger; nothing was undone."""
    skipped = [step for line in json_lines(run / "ledger.jsonl") for step in line.get("skipped_updates", [])]
    assert skipped == list(steps)
    lines = [line for line in json_lines(run / "metrics.jsonl") if line["split"] == "train"]
    assert lines[-1]["skipped_updates"] == len(steps)
    assert rollbacks(run) == []
    assert_trained_to_the_end(run)


def assert_trained_to_the_end(run: Path, num_steps: int = NUM_STEPS) -> None:
    """Every step is there once, the checkpoints hold numbers, and the ledger is in order."""
    assert sorted(train_losses(run)) == list(range(1, num_steps + 1))
    for info in list_checkpoints(run / "checkpoints"):
        checkpoint = read_checkpoint(info.path)
        for arrays in (checkpoint.weights, checkpoint.optimizer):
            assert all(np.isfinite(array).all() for array in arrays.values()), f"{info.path} is spoilt"
    assert num_steps in good_steps(run)
    assert_ledger_in_order(run)
