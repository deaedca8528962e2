"""With `train.deterministic` two runs are equal to the last bit: losses, samples, weights and moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import checked, ledger_hash, run_path, run_python, train_losses, training_config, write_config
from trainer.checkpoint import read_checkpoint

# Op determinism cannot be switched off again: the runs have a process of their own.
TRAIN = """
import sys
from pathlib import Path
from trainer.config_io import load_config
from trainer.loop import train
for path in sys.argv[1:]:
    train(load_config(Path(path)))
from tensorflow.python.framework import config
assert config.is_op_determinism_enabled(), "TensorFlow was not told"
"""


@pytest.mark.parametrize(
    "distribution",
    [{}, pytest.param({"backend": "mirrored", "num_replicas": 2}, marks=pytest.mark.slow)],
    ids=["single", "mirrored"],
)
def test_two_runs_are_equal_to_the_last_bit(prepared: Path, distribution: dict[str, object]) -> None:
    configs = [
        training_config(
            prepared,
            f"deterministic-{len(distribution)}-{number}",
            model={"dropout": 0.1},
            train={"deterministic": True, "steps": 8, "micro_batch_size": 4},
            distribution=distribution,
        )
        for number in range(2)
    ]
    paths = [write_config(config, prepared / f"{config.run.name}.yaml") for config in configs]
    # Two mirrored strategies do not go together in a process: one each.
    for together in [[path] for path in paths] if distribution else [paths]:
        checked(run_python("-c", TRAIN, *together))
    first, second = (run_path(config) for config in configs)
    assert train_losses(first) == train_losses(second)
    assert ledger_hash(first) == ledger_hash(second)
    ours, theirs = (read_checkpoint(run / "checkpoints" / "step-00000008") for run in (first, second))
    for mine, other in ((ours.weights, theirs.weights), (ours.optimizer, theirs.optimizer)):
        assert all(mine[name].tobytes() == other[name].tobytes() for name in mine)
