"""From a run's variables to a checkpoint and back: the chief reads and writes, the others receive."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.checkpoint import Checkpoint, Progress, newest_good, prune_checkpoints, read_checkpoint, write_checkpoint
from trainer.config import Config
from trainer.data.corpus import Corpus
from trainer.distribution import Distribution, any_process, chiefs
from trainer.errors import CheckpointError, UserError
from trainer.run_directory import RunDirectory, versions
from trainer.step import TrainingState
from trainer.weights import assign_weights

logger = logging.getLogger(__name__)


def restore(
    run: RunDirectory, config: Config, corpus: Corpus, state: TrainingState, distribution: Distribution, *, fresh: bool
) -> Progress:
    """Fills `state` from the newest good checkpoint, on all processes alike; the run's beginning where there is none.

    Raises CheckpointError, on all processes, where the checkpoints are damaged or of another run, or where there are some
    and `fresh` is asked for.
    """
    progress, error = Progress(), None
    if distribution.is_chief:
        try:
            progress = _restore_on_chief(run, identity(config, corpus), state, fresh=fresh)
        except UserError as caught:
            error = caught
    if any_process(distribution, error is not None):
        raise error or CheckpointError(f"{run.path}: the chief could not go on from it; its message says why")
    step = chiefs(distribution, progress.step)
    if step:
        distribution.broadcast(state.variables)
    return progress if distribution.is_chief else Progress(step=step, num_samples=step * config.train.global_batch_size)


def save(
    run: RunDirectory,
    config: Config,
    corpus: Corpus,
    state: TrainingState,
    distribution: Distribution,
    progress: Progress,
) -> None:
    """Writes a checkpoint of `state` and deletes those that need not be kept. Only the chief may call it."""
    checkpoint = Checkpoint(
        weights={name: weight.numpy() for name, weight in state.weights.items()},
        optimizer={name: np.asarray(variable.numpy()) for name, variable in _optimizer_variables(state).items()},
        progress=progress,
        identity=identity(config, corpus),
    )
    context = {"backend": distribution.name, "num_replicas": distribution.num_replicas, "versions": versions()}
    path = write_checkpoint(run.checkpoints, checkpoint, context)
    logger.info("saved %s", path)
    prune_checkpoints(run.checkpoints, config.checkpoint.keep_last, config.checkpoint.keep_best)


def identity(config: Config, corpus: Corpus) -> dict[str, Any]:
    """What must stay as it is for a run to be the same run: it decides the order of the data and the model's shape."""
    parts = [part.sha256 for dataset in corpus.manifest.train for part in dataset.parts]
    return {
        "seed": config.run.seed,
        "task": config.task,
        "model": config.model.model_dump(mode="json"),
        "tokenizer": corpus.manifest.tokenizer_fingerprint,
        "data": hashlib.sha256("".join(parts).encode()).hexdigest(),
        "weights": [source.weight for source in config.data.train],
        "sequence_length": config.data.sequence_length,
        "pack": config.data.pack,
        "global_batch_size": config.train.global_batch_size,
        "precision": config.train.precision,
    }


def _restore_on_chief(run: RunDirectory, expected: Mapping[str, Any], state: TrainingState, *, fresh: bool) -> Progress:
    path = newest_good(run.checkpoints)
    if path is None:
        return Progress()
    if fresh:
        raise CheckpointError(f"--fresh: {run.path} has checkpoints already; take another run.name, or delete the folder")
    checkpoint = read_checkpoint(path)
    before, now = _flat(checkpoint.identity), _flat(expected)
    differences = [
        f"{key} was {_brief(before.get(key))} and is now {_brief(now.get(key))}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise CheckpointError(f"{path} is of another run: {'; '.join(differences)}; take another run.name, or change it back")
    assign_weights(state.weights, checkpoint.weights, str(path))
    assign_weights(_optimizer_variables(state), checkpoint.optimizer, str(path))
    logger.info("going on from %s", path)
    return checkpoint.progress


def _optimizer_variables(state: TrainingState) -> dict[str, tf.Variable]:
    moments = {f"first_moments.{name}": moment for name, moment in state.first_moments.items()}
    moments |= {f"second_moments.{name}": moment for name, moment in state.second_moments.items()}
    return moments | {"loss_scale": state.loss_scale, "steps_since_overflow": state.steps_since_overflow}


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted names, so that of a model the one key is named that differs."""
    result: dict[str, Any] = {}
    for key, value in identity.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
