"""Real Horovod ranks that share the optimizer's state have the losses of one that keeps all of it, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import (
    BIN,
    checked,
    largest_difference,
    run_command,
    run_path,
    run_python,
    train_losses,
    training_config,
    write_config,
)
from trainer.checkpoint import newest_good, read_checkpoint
from trainer.config import Config

PROGRAM = Path(__file__).with_name("train_several.py")
HOROVOD = {"backend": "horovod"}


def config_of(directory: Path, name: str, *, steps: int, sharded: bool, **sections: Any) -> Config:
    train = {"steps": steps, "shard_optimizer": sharded} | sections.pop("train", {})
    return training_config(directory, name, train=train, distribution=HOROVOD | sections.pop("distribution", {}), **sections)


def on_two_ranks(paths: list[Path]) -> None:
    pytest.importorskip("horovod")
    checked(run_command([str(BIN / "horovodrun"), "--gloo", "-np", "2", str(BIN / "python"), str(PROGRAM), *map(str, paths)]))


@pytest.mark.processes
def test_a_sharded_optimizer_has_the_losses_of_a_whole_one_and_goes_on_with_any_number_of_ranks(
    prepared: Path, tmp_path: Path
) -> None:
    def written(name: str, steps: int, sharded: bool) -> Path:
        config = config_of(prepared, name, steps=steps, sharded=sharded, optimizer={"schedule": "constant"})
        return write_config(config, tmp_path / f"{name}-{steps}-{sharded}.yaml")

    on_two_ranks(
        [
            written("whole", 20, False),
            written("sharded", 20, True),
            written("narrower", 10, True),
            written("again", 10, True),
            written("again", 20, True),
            written("unsharded", 10, False),
            written("unsharded", 20, True),
        ]
    )
    checked(run_python(PROGRAM, written("narrower", 20, False)))

    reference = train_losses(run_path(config_of(prepared, "whole", steps=20, sharded=False)))
    for name in ("sharded", "narrower", "again", "unsharded"):
        losses = train_losses(run_path(config_of(prepared, name, steps=20, sharded=True)))
        assert largest_difference(losses, reference) < 1e-6, name
    whole, sharded = (
        read_checkpoint(newest_good(run_path(config_of(prepared, name, steps=20, sharded=True)) / "checkpoints"))  # type: ignore[arg-type]
        for name in ("whole", "sharded")
    )
    shapes = [{name: array.shape for name, array in each.optimizer.items()} for each in (whole, sharded)]
    assert shapes[0] == shapes[1]
