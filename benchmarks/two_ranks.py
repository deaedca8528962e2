"""Two Horovod ranks that train models of a given shape on made-up tokens, for benchmarks of what ranks do together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_time import Shape

from trainer.config import Config, plan_batches

if TYPE_CHECKING:  # the process that starts the ranks has no use for TensorFlow
    from trainer.distribution import Distribution
    from trainer.training_state import TrainingState

NUM_RANKS = 2
NUM_BATCHES = 64  # after which they come again
# A network of its own, in which no other process sends anything.
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def on_two_ranks(program: str, arguments: Sequence[str], *, alone_in_network: bool = False) -> Any:
    """Runs `program --result FILE` on each rank; what the first rank wrote there, as JSON. Ends all where a rank fails."""
    binaries, root = Path(sys.executable).parent, Path(__file__).resolve().parents[1]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = str(root)
    environment["PATH"] = f"{binaries}{os.pathsep}{environment.get('PATH', '')}"
    with tempfile.TemporaryDirectory(prefix="drumline-ranks-") as folder:
        result = Path(folder) / "result.json"
        command = [str(binaries / "horovodrun"), "--gloo", "-np", str(NUM_RANKS), sys.executable, program]
        command = [*(ALONE if alone_in_network else []), *command, *arguments, "--result", str(result)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return json.loads(result.read_text())


def config_of(
    shape: Shape, *, num_micro_batches: int = 1, model: Any = None, train: Any = None, distribution: Any = None
) -> Config:
    """A run of that shape, whose `batch` is the rows of one micro-batch of one rank; sections are changed key by key."""
    micro_batch_size = shape.batch * NUM_RANKS
    return Config.model_validate(
        {
            "run": {"name": "two-ranks"},
            "data": {
                "store": "none",
                "train": [{"path": "none"}],
                "sequence_length": shape.length,
                "tokenizer": {"kind": "character"},
            },
            "model": {"num_layers": shape.num_layers, "num_heads": shape.num_heads, "width": shape.width} | (model or {}),
            "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
            "train": {
                "steps": 1_000_000,
                "global_batch_size": micro_batch_size * num_micro_batches,
                "micro_batch_size": micro_batch_size,
            }
            | (train or {}),
            "distribution": {"backend": "horovod"} | (distribution or {}),
        }
    )


def trainer_of(config: Config, shape: Shape, distribution: Distribution) -> tuple[TrainingState, Callable[[int], list[float]]]:
    """A state, and what makes so many updates of it and returns their losses."""
    import numpy as np
    import tensorflow as tf

    from trainer.position import GraphPosition
    from trainer.sizes import Sizes
    from trainer.step import choose_compiler, compile_training
    from trainer.training_state import create_state, own_share

    plan = plan_batches(config.train, distribution.num_replicas)
    state = create_state(config, Sizes(shape.vocabulary), own_share(config, distribution.rank, distribution.num_processes))
    distribution.broadcast(state.replicated)
    train_steps = compile_training(config, state, distribution, plan, choose_compiler(config)[0], GraphPosition())

    sizes = (NUM_BATCHES, plan.num_micro_batches, shape.batch, shape.length + 1)
    # Low numbers are frequent, as words are: there is something to learn.
    tokens = (shape.vocabulary * np.random.default_rng(distribution.rank).random(sizes) ** 4).astype(np.int32)
    row = np.arange(plan.num_micro_batches, dtype=np.int64)
    same = {"sample_ids": np.zeros(sizes[1:3], np.int64), "first_row": row * shape.batch}
    dataset = tf.data.Dataset.from_tensor_slices({"inputs": tokens[..., :-1], "targets": tokens[..., 1:]})
    batches = distribution.iterate(dataset.map(lambda element: element | same).repeat().prefetch(2))
    done = 0

    def take_steps(count: int) -> list[float]:
        nonlocal done
        losses = train_steps(batches, tf.constant(done, tf.int64), tf.constant(count))["loss"].numpy()
        done += count
        return [float(loss) for loss in losses]

    return state, take_steps
