"""All variables of a run: weights, what the optimizer keeps of them, their averages, the loss scale; and how they begin."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import tensorflow as tf

from trainer.config import Config
from trainer.models.parameters import Parameter
from trainer.optimizers.shards import Share
from trainer.optimizers.slots import slot_shapes
from trainer.pretrained.reading import open_pretrained
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters


@dataclass(frozen=True)
class TrainingState:
    """By the names of `tasks.parameters`; all are float32 in every precision. `slots` has the optimizer's variables: for
    each slot of `slot_shapes` those of the weights that have it. `averages` are of the weights that are trained, with
    `train.average_decay`; without, there are none.
    With a `share` (`train.shard_optimizer`) the slots are this rank's pieces of them; all else is whole.

    What is not here is a function of the step: the learning rate, the data order, the dropout masks.
    """

    parameters: dict[str, Parameter]
    weights: dict[str, tf.Variable]
    slots: dict[str, dict[str, tf.Variable]]
    averages: dict[str, tf.Variable]
    loss_scale: tf.Variable
    steps_since_overflow: tf.Variable
    share: Share | None = None

    @property
    def variables(self) -> list[tf.Variable]:
        slots = [variable for slot in self.slots.values() for variable in slot.values()]
        return [*self.replicated, *slots]

    @property
    def replicated(self) -> list[tf.Variable]:
        """The variables that all ranks have alike, whether the optimizer's are sharded or not."""
        return [*self.weights.values(), *self.averages.values(), self.loss_scale, self.steps_since_overflow]

    @property
    def evaluated(self) -> dict[str, tf.Variable]:
        """The weights that are evaluated: the averages of those that have one."""
        return self.weights | self.averages

    def beside(self, name: str) -> tuple[dict[str, tf.Variable], tf.Variable | None]:
        """What belongs to a weight: its slots by name, and its average."""
        return {slot: each[name] for slot, each in self.slots.items() if name in each}, self.averages.get(name)


def create_weights(config: Config, sizes: Sizes) -> dict[str, tf.Variable]:
    """The weights as they begin where nothing is read into them: a function of the run's seed and each weight's name."""
    return {
        name: tf.Variable(_initial_value(parameter, config.run.seed, name), name=name)
        for name, parameter in run_parameters(config, sizes).items()
    }


def own_share(config: Config, rank: int, num_ranks: int) -> Share | None:
    """The rank's share of the optimizer's state; None where each rank has it whole."""
    return Share(rank, num_ranks) if config.train.shard_optimizer and num_ranks > 1 else None


def create_state(config: Config, sizes: Sizes, share: Share | None = None) -> TrainingState:
    """A run's variables as they begin where nothing is read into them; to be called in the distribution's scope. It is
    `reset_state` that reads `model.initialize_from`, once it is known that there is no checkpoint."""
    specification = run_parameters(config, sizes)
    slots: dict[str, dict[str, tf.Variable]] = {}
    for name, parameter in specification.items():
        for slot, shape in slot_shapes(config.optimizer, parameter).items():
            slots.setdefault(slot, {})[name] = tf.Variable(tf.zeros(_slot_shape(shape, share)))
    averaged = specification if config.train.average_decay is not None else {}
    return TrainingState(
        parameters=specification,
        weights=create_weights(config, sizes),
        slots=slots,
        averages={
            name: tf.Variable(_initial_value(parameter, config.run.seed, name))
            for name, parameter in averaged.items()
            if parameter.is_trainable
        },
        loss_scale=tf.Variable(_initial_loss_scale(config)),
        steps_since_overflow=tf.Variable(0.0),
        share=share,
    )


def reset_state(config: Config, state: TrainingState) -> None:
    """Makes a run's variables what they are when it begins: the weights random, or as `model.initialize_from` has them.

    Raises UserError where that folder cannot be read, or is of another model.
    """
    pretrained = open_pretrained(config, state.parameters) if config.model.initialize_from is not None else {}
    for name, parameter in state.parameters.items():
        is_read = name in pretrained
        state.weights[name].assign(pretrained[name] if is_read else _initial_value(parameter, config.run.seed, name))
    for slot in state.slots.values():
        for variable in slot.values():
            variable.assign(tf.zeros(variable.shape))
    begin_averages(state)
    state.loss_scale.assign(_initial_loss_scale(config))
    state.steps_since_overflow.assign(0.0)


def begin_averages(state: TrainingState) -> None:
    """The averages, where there are any, become the weights."""
    for name, average in state.averages.items():
        average.assign(state.weights[name].read_value())


def _slot_shape(shape: tuple[int, ...], share: Share | None) -> tuple[int, ...]:
    return shape if share is None else (share.piece_length(math.prod(shape)),)


def _initial_loss_scale(config: Config) -> float:
    return config.train.initial_loss_scale if config.train.precision == "float16" else 1.0


def _initial_value(parameter: Parameter, seed: int, name: str) -> tf.Tensor:
    match parameter.initializer:
        case "normal":
            key = (seed, zlib.crc32(name.encode()) & 0x7FFFFFFF)
            return tf.random.stateless_normal(parameter.shape, key, stddev=parameter.standard_deviation)
        case "zeros":
            return tf.zeros(parameter.shape)
        case "ones":
            return tf.ones(parameter.shape)
