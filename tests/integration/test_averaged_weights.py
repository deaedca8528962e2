"""With `train.average_decay` the average is what is evaluated, predicted with and exported; training goes on without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.training import json_lines, run_path, train_losses, training_config
from trainer.checkpoint import AVERAGE, read_checkpoint
from trainer.config import Config
from trainer.pretrained.trained import read_run

NUM_STEPS = 12


def averaged(directory: Path, name: str, kind: str, average_decay: float | None = 0.9) -> Config:
    return training_config(
        directory,
        name,
        optimizer={"kind": kind, "warmup_steps": 0},
        train={"steps": NUM_STEPS, "average_decay": average_decay},
        evaluation={"every": NUM_STEPS},
        checkpoint={"every": NUM_STEPS // 2},
    )


def validation_loss(run: Path) -> float:
    (line,) = (line for line in json_lines(run / "metrics.jsonl") if line["split"] == "validation")
    return float(line["loss"])


def test_the_average_is_what_is_evaluated_predicted_with_and_exported(prepared: Path, tensorflow: ModuleType) -> None:
    from trainer.evaluate import evaluate_run
    from trainer.loop import train
    from trainer.prediction.model import load_model

    plain, config = (averaged(prepared, f"average-{decay}", "adamw", decay) for decay in (None, 0.9))
    for each in (plain, config):
        train(each)
    run = run_path(config)
    assert train_losses(run) == train_losses(run_path(plain)), "training itself does not see the average"
    checkpoint = read_checkpoint(run / "checkpoints" / f"step-{NUM_STEPS:08d}")
    averages = {name.removeprefix(AVERAGE): each for name, each in checkpoint.optimizer.items() if name.startswith(AVERAGE)}
    assert averages.keys() == checkpoint.weights.keys()
    assert abs(validation_loss(run) - validation_loss(run_path(plain))) > 1e-3
    evaluated: Any = evaluate_run(run)["loss"]
    assert evaluated == pytest.approx(validation_loss(run), rel=1e-6)
    predicting, exported = load_model(run, "latest").weights, read_run(run, "latest").weights
    for name, average in averages.items():
        np.testing.assert_array_equal(predicting[name].numpy(), average)
        np.testing.assert_array_equal(exported[name], average)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adafactor", "lamb", "lion", "muon"])
def test_a_run_with_an_average_goes_on_to_the_last_bit(prepared: Path, tensorflow: ModuleType, kind: str) -> None:
    from trainer.loop import train

    config = averaged(prepared, f"going-on-{kind}", kind)
    last = run_path(config) / "checkpoints" / f"step-{NUM_STEPS:08d}"
    train(config)
    losses, saved = train_losses(run_path(config)), read_checkpoint(last)
    shutil.rmtree(last)
    train(config)
    assert train_losses(run_path(config)) == losses
    again = read_checkpoint(last)
    for ours, theirs in ((again.weights, saved.weights), (again.optimizer, saved.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
