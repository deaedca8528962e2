"""`drumline train CONFIG` with a fault put into it, and a watch over the weights of its rank. Started by the tests.

    train_with_fault.py CONFIG FOLDER '{"samples": [17, 18], "effect": "hang"}'

A fault is tied to samples by their ids: who steps over them is rid of it, and it meets the rank whose rows they are. With
`hang` reading one of them never ends. With a number, `nan` included, the loss of a batch that has one is multiplied by it.
What the watch saw goes to FOLDER/weights-RANK.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import cli, loop
from trainer.data import pipeline
from trainer.tasks.language_modeling import LanguageModeling
from trainer.training_state import TrainingState

# A target below zero does not count; the product's own is -1.
MARK = -2


@contextmanager
def fault(samples: Sequence[int], effect: str | float) -> Iterator[None]:
    """Within the block training meets the fault."""
    gather, loss_sums = pipeline._gather, LanguageModeling.loss_sums

    def faulty_gather(datasets: Any, order: Any, ids: np.ndarray, *others: Any) -> dict[str, np.ndarray]:
        is_bad = np.isin(ids, samples)
        if effect == "hang" and is_bad.any():
            time.sleep(3600)
        arrays = gather(datasets, order, ids, *others)
        arrays["targets"][is_bad, 0] = MARK
        return arrays

    def faulty_loss_sums(self: Any, weights: Any, features: Any, *others: Any) -> tuple[tf.Tensor, tf.Tensor]:
        loss_sum, num_tokens = loss_sums(self, weights, features, *others)
        if effect == "hang":
            return loss_sum, num_tokens
        is_met = tf.reduce_any(features["targets"] == MARK)
        return loss_sum * tf.where(is_met, tf.constant(float(effect), loss_sum.dtype), 1.0), num_tokens

    pipeline._gather, LanguageModeling.loss_sums = faulty_gather, faulty_loss_sums  # type: ignore[method-assign]
    try:
        yield
    finally:
        pipeline._gather, LanguageModeling.loss_sums = gather, loss_sums  # type: ignore[method-assign]


@contextmanager
def watched_weights() -> Iterator[list[tuple[bool, str]]]:
    """Within the block, for each call of updates: whether all weights and moments of each replica of this process are finite
    after it, and their hash. The replicas must have the same."""
    seen: list[tuple[bool, str]] = []
    compile_training = loop.compile_training

    def watched(config: Any, state: TrainingState, *others: Any) -> Callable[..., Any]:
        train_steps = compile_training(config, state, *others)

        def train_steps_and_look(*arguments: Any) -> Any:
            history = train_steps(*arguments)
            replicas = [_look_at(state, number) for number in range(_num_replicas(state))]
            assert len(set(replicas)) == 1, "the replicas of this process differ"
            seen.append(replicas[0])
            return history

        return train_steps_and_look

    loop.compile_training = watched
    try:
        yield seen
    finally:
        loop.compile_training = compile_training


def _num_replicas(state: TrainingState) -> int:
    return len(getattr(state.loss_scale, "values", [None]))


def _look_at(state: TrainingState, replica: int) -> tuple[bool, str]:
    arrays = [np.asarray(getattr(variable, "values", [variable])[replica].numpy()) for variable in state.variables]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    return all(bool(np.isfinite(array).all()) for array in arrays), digest


def main(config: str, folder: str, wanted: dict[str, Any]) -> int:
    with fault(wanted["samples"], wanted["effect"]), watched_weights() as seen:
        exit_code = cli.main(["train", config])
    Path(folder, f"weights-{os.environ.get('HOROVOD_RANK', '0')}.json").write_text(json.dumps(seen))
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
