"""A run whose loss is no longer a number ends with exit code 3, and leaves no checkpoint that is spoilt."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.training import run_path, training_config
from trainer.checkpoint import list_checkpoints, read_checkpoint
from trainer.errors import Diverged


@pytest.mark.parametrize("steps_per_loop", [1, 4])
def test_a_diverged_run_says_so_and_saves_nothing_that_is_not_a_number(
    prepared: Path, tensorflow: ModuleType, steps_per_loop: int
) -> None:
    from trainer.loop import train

    config = training_config(
        prepared,
        f"diverged-{steps_per_loop}",
        optimizer={"learning_rate": 1e30, "minimum_learning_rate": 0.0, "warmup_steps": 0, "clip_norm": None},
        train={"steps": 12, "steps_per_loop": steps_per_loop},
        checkpoint={"every": 1 if steps_per_loop == 1 else 4},
    )
    with pytest.raises(Diverged, match=r"step \d+ is (nan|inf)") as diverged:
        train(config)
    assert "learning_rate" in str(diverged.value) and Diverged.exit_code == 3
    for info in list_checkpoints(run_path(config) / "checkpoints"):
        weights = read_checkpoint(info.path).weights
        assert all(np.isfinite(weight).all() for weight in weights.values()), f"{info.path} is spoilt"
