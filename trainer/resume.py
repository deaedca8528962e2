"""From a run's variables to a checkpoint and back: the chief reads, the others receive."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.checkpoint import AVERAGE, Checkpoint, discard_after, newest_good, read_checkpoint
from trainer.config import Config
from trainer.config_io import dump_config
from trainer.data.corpus import Corpus
from trainer.distribution import Distribution, chiefs_bytes, on_chief
from trainer.encryption.files import Encryption
from trainer.errors import CheckpointError
from trainer.identity import identity, refuse_changes
from trainer.optimizers.slots import slot_shapes
from trainer.privacy.training import begin_privacy
from trainer.progress import Progress
from trainer.run_directory import RunDirectory, versions
from trainer.sharded_update import joined, piece
from trainer.training_state import TrainingState, begin_averages, reset_state
from trainer.weights import assign_weights, refuse_misfits

logger = logging.getLogger(__name__)


def restore(
    run: RunDirectory,
    config: Config,
    corpus: Corpus,
    state: TrainingState,
    distribution: Distribution,
    *,
    fresh: bool,
    allowed_changes: Sequence[str],
) -> Progress:
    """Fills `state` from the newest good checkpoint, on all processes alike; where there is none, the run begins, with
    the weights of `model.initialize_from` where it has that. Once there is a checkpoint, that folder is not needed any more.

    Raises CheckpointError, on all processes, where the checkpoints are damaged or of another run, or where there are some
    and `fresh` is asked for; UserError where the pretrained weights cannot be had.
    """

    slots: dict[str, np.ndarray] = {}

    def read() -> Progress:
        path = newest_good(run.checkpoints)
        if path is None:
            if config.model.initialize_from is not None:
                reset_state(config, state)
            return Progress(privacy=begin_privacy(config, corpus))
        if fresh:
            raise CheckpointError(f"--fresh: {run.path} has checkpoints already; take another run.name, or delete the folder")
        checkpoint = read_checkpoint(path, Encryption.of(config.security))
        changes = refuse_changes(checkpoint.identity, identity(config, corpus), allowed_changes, str(path))
        progress = _fill(config, state, checkpoint, path, slots)
        for change in changes:
            logger.warning("going on although %s", change)
        return progress

    is_read = config.model.initialize_from is not None
    return _share(on_chief(distribution, read), state, distribution, slots, also_beginnings=is_read)


def roll_back(
    run: RunDirectory, config: Config, state: TrainingState, distribution: Distribution, before_step: int
) -> Progress:
    """Fills `state` from the newest good checkpoint of fewer than `before_step` updates, or as the run began, and
    discards the later ones: they are of a course that was given up."""

    slots: dict[str, np.ndarray] = {}

    def read() -> Progress:
        path = newest_good(run.checkpoints, before_step)
        if path is None:
            reset_state(config, state)
            progress = Progress()
        else:
            progress = _fill(config, state, read_checkpoint(path, Encryption.of(config.security)), path, slots)
        discard_after(run.checkpoints, progress.step)
        return progress

    return _share(on_chief(distribution, read), state, distribution, slots, also_beginnings=True)


def gather_slots(state: TrainingState, distribution: Distribution) -> dict[str, np.ndarray] | None:
    """The whole of what the optimizer keeps, by the names of a checkpoint, on the host: of a sharded one. Every rank must
    call it, and the chief alone has the result."""
    whole = {}
    for slot, name, variable in _slots(state):
        with tf.device("CPU:0"):
            numbers = distribution.all_gather([tf.identity(variable.read_value())])[0]
        if distribution.is_chief:
            whole[f"{slot}.{name}"] = joined(numbers, state.parameters[name].shape).numpy()
    return whole if distribution.is_chief else None


def snapshot(
    state: TrainingState,
    config: Config,
    corpus: Corpus,
    progress: Progress,
    slots: Mapping[str, np.ndarray] | None = None,
) -> Checkpoint:
    """The run as it stands, on the host. Updates that come later do not change it.

    On a CPU nothing is copied here: an array shares its variable's buffer, and an update that finds a buffer shared gives
    the variable another one (PrepareToUpdateVariable in TensorFlow's training_op_helpers.h).
    `slots` are those of `gather_slots`.
    """

    def arrays(variables: Mapping[str, tf.Variable]) -> dict[str, np.ndarray]:
        return {name: np.asarray(variable.read_value()) for name, variable in variables.items()}

    return Checkpoint(
        weights=arrays(state.weights),
        optimizer=arrays(_optimizer_variables(state)) | dict(slots or {}),
        progress=progress,
        identity=identity(config, corpus),
    )


def saving_context(config: Config, distribution: Distribution) -> dict[str, Any]:
    """What a checkpoint's manifest says about how it came about."""
    return {
        "run": config.run.name,
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "backend": distribution.name,
        "world_size": distribution.num_processes,
        "num_replicas": distribution.num_replicas,
        "versions": versions(),
    }


def _fill(config: Config, state: TrainingState, checkpoint: Checkpoint, path: Path, slots: dict[str, np.ndarray]) -> Progress:
    """What the optimizer keeps goes, where it is sharded, into `slots`, whole, for `_share` to hand it out."""
    assign_weights(state.weights, checkpoint.weights, str(path))
    variables, saved = _optimizer_variables(state), checkpoint.optimizer
    if bool(state.averages) != any(name.startswith(AVERAGE) for name in saved):
        # `train.average_decay` was allowed to change: averages end here, or begin as the weights are.
        variables = {name: variable for name, variable in variables.items() if not name.startswith(AVERAGE)}
        saved = {name: array for name, array in saved.items() if not name.startswith(AVERAGE)}
        begin_averages(state)
    if state.share is not None:
        shapes = {
            f"{slot}.{name}": slot_shapes(config.optimizer, state.parameters[name])[slot] for slot, name, _ in _slots(state)
        }
        slots |= {name: array for name, array in saved.items() if name in shapes or name not in variables}
        refuse_misfits(shapes, slots, str(path))
        saved = {name: array for name, array in saved.items() if name not in slots}
    assign_weights(variables, saved, str(path))
    logger.info("going on from %s", path)
    return checkpoint.progress


def _share(
    progress: Progress | None,
    state: TrainingState,
    distribution: Distribution,
    slots: Mapping[str, np.ndarray],
    *,
    also_beginnings: bool,
) -> Progress:
    """Gives the others what the chief has read; the beginning of a run only where that is not on all processes already.
    Sharded slots, of which the chief has read the whole or, at a beginning, nothing, go out one at a time."""
    content = json.dumps(progress.to_json()).encode() if progress is not None else b""
    shared = Progress.from_json(json.loads(chiefs_bytes(distribution, content)))
    if shared.step or also_beginnings:
        share = state.share
        distribution.broadcast(state.replicated if share is not None else state.variables)
        for slot, name, variable in _slots(state):
            if share is None:
                break
            whole = tf.Variable(slots.get(f"{slot}.{name}", np.zeros(state.parameters[name].shape, np.float32)))
            distribution.broadcast([whole])
            variable.assign(piece(share, tf.convert_to_tensor(whole)))
    return shared


def _slots(state: TrainingState) -> Iterator[tuple[str, str, tf.Variable]]:
    """The optimizer's variables, by slot and weight."""
    return ((slot, name, variable) for slot, each in state.slots.items() for name, variable in each.items())


def _optimizer_variables(state: TrainingState) -> dict[str, tf.Variable]:
    """By the names of a checkpoint, without slots that are sharded."""
    variables = {f"{slot}.{name}": variable for slot, name, variable in _slots(state)} if state.share is None else {}
    variables |= {f"{AVERAGE}{name}": average for name, average in state.averages.items()}
    return variables | {"loss_scale": state.loss_scale, "steps_since_overflow": state.steps_since_overflow}
