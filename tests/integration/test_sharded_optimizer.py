"""Real Horovod ranks that share the optimizer's state have the losses of one that keeps all of it, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import (
    BIN,
    checked,
    json_lines,
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
        how = {"shared_memory": name != "gloo"}
        config = config_of(prepared, name, steps=steps, sharded=sharded, optimizer={"schedule": "constant"}, distribution=how)
        return write_config(config, tmp_path / f"{name}-{steps}-{sharded}.yaml")

    on_two_ranks(
        [
            written("whole", 20, False),
            written("sharded", 20, True),
            written("gloo", 20, True),
            written("narrower", 10, True),
            written("again", 10, True),
            written("again", 20, True),
            written("unsharded", 10, False),
            written("unsharded", 20, True),
        ]
    )
    checked(run_python(PROGRAM, written("narrower", 20, False)))

    reference = train_losses(run_path(config_of(prepared, "whole", steps=20, sharded=False)))
    for name in ("sharded", "gloo", "narrower", "again", "unsharded"):
        losses = train_losses(run_path(config_of(prepared, name, steps=20, sharded=True)))
        assert largest_difference(losses, reference) < 1e-6, name
    whole, sharded = (
        read_checkpoint(newest_good(run_path(config_of(prepared, name, steps=20, sharded=True)) / "checkpoints"))  # type: ignore[arg-type]
        for name in ("whole", "sharded")
    )
    shapes = [{name: array.shape for name, array in each.optimizer.items()} for each in (whole, sharded)]
    assert shapes[0] == shapes[1]


# What else changes how weights are updated: sections, and how far losses may differ for rounding alone.
OTHERS: dict[str, tuple[dict[str, Any], float]] = {
    "slower, frozen and averaged weights": (
        {
            "optimizer": {"layer_decay": 0.8, "freeze": ["position_embedding"]},
            "train": {"average_decay": 0.9, "micro_batch_size": 4},
        },
        1e-6,
    ),
    # A scale at which the first updates overflow, and are skipped.
    "float16": ({"train": {"precision": "float16", "initial_loss_scale": 2.0**40}}, 1e-4),
}


@pytest.mark.processes
def test_it_has_the_losses_of_a_whole_one_whatever_else_is_asked_of_an_update(prepared: Path, tmp_path: Path) -> None:
    def config(name: str, sharded: bool) -> Config:
        sections = {section: dict(values) for section, values in OTHERS[name][0].items()}
        # The keys' biases have no gradient but rounding, of which Adam makes steps of full size.
        sections["model"] = {"biases": False}
        return config_of(prepared, f"{name.split(',')[0]}-{sharded}", steps=20, sharded=sharded, **sections)

    configs = {(name, sharded): config(name, sharded) for name in OTHERS for sharded in (False, True)}
    on_two_ranks([write_config(each, tmp_path / f"{each.run.name}.yaml") for each in configs.values()])

    for name, (_, tolerance) in OTHERS.items():
        whole, sharded = (run_path(configs[name, each]) for each in (False, True))
        assert largest_difference(train_losses(sharded), train_losses(whole)) < tolerance, name
        found, expected = (read_checkpoint(newest_good(run / "checkpoints")) for run in (sharded, whole))  # type: ignore[arg-type]
        assert found.optimizer.keys() == expected.optimizer.keys()  # moments, and averages where there are any
        for each, array in expected.optimizer.items():
            assert np.linalg.norm(found.optimizer[each] - array) <= 100 * tolerance * np.linalg.norm(array), each
    lines = json_lines(run_path(configs["float16", True]) / "metrics.jsonl")
    assert [line["loss_scale"] for line in lines if line["split"] == "train"][-1] < 2.0**30
