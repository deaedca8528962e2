"""One update: loss, gradients, accumulation, one reduction, clipping, optimizer; and the loop over updates inside the graph.

Axes: A micro-batches of an update, M rows of a micro-batch on one replica, T tokens of a row.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from trainer.config import BatchPlan, Config
from trainer.distribution import Distribution
from trainer.lanes import in_lanes
from trainer.models.apart import compiled_apart
from trainer.models.blocks import DropoutKey
from trainer.models.lookups import lookups_apart
from trainer.optimizers.average import kept_of_average
from trainer.optimizers.scalars import update_scalars
from trainer.optimizers.schedules import learning_rate
from trainer.position import COMPUTING, REDUCING, UPDATING, WAITING_FOR_BATCH, GraphPosition
from trainer.privacy.gradients import Noise, clipped_sums
from trainer.sharded_update import reduce_scatter, sharded_update
from trainer.tasks.choice import choose_task
from trainer.tasks.task import Features, Task
from trainer.training_state import TrainingState
from trainer.weight_update import weight_update

PRECISIONS = {"float32": tf.float32, "bfloat16": tf.bfloat16, "float16": tf.float16}

BOOKKEEPING = ("sample_ids", "first_row", "first_position")  # what a batch has beside the task's features

REPORTED = {
    "loss": tf.float32,
    "num_tokens": tf.float32,
    "gradient_norm": tf.float32,
    "learning_rate": tf.float32,
    "loss_scale": tf.float32,
    "is_skipped": tf.bool,
    "data_wait_seconds": tf.float64,
    "sample_ids": tf.int64,
}

Compiler = Literal["xla", "elementwise", "graph"]


def choose_compiler(config: Config) -> tuple[Compiler, str]:
    """What XLA compiles of the forward and backward pass, and why: all of it, each chain of elementwise operations by itself
    (`models.elementwise`), or nothing."""
    if config.train.compile != "auto":
        return config.train.compile, "as configured"
    if tf.config.get_visible_devices("GPU"):
        return "xla", "it fuses what lies between the matrix products"
    return "elementwise", "XLA fuses what lies between the matrix products, but on a CPU its own are slower than the graph's"


def compile_training(
    config: Config,
    state: TrainingState,
    distribution: Distribution,
    plan: BatchPlan,
    compiler: Compiler,
    position: GraphPosition,
    noise: Noise | None = None,
) -> Callable[[Iterator[Any], tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """A function (batches, first_step, num_steps) that makes so many updates in one call, and marks its `position`; of private
    training with `noise`.

    It returns, for each step [num_steps]: `loss` (nats, mean over what counts in the global batch), `num_tokens`,
    `gradient_norm` (before clipping), `learning_rate`, `loss_scale`, `data_wait_seconds`; `is_skipped`: whether the
    update was left out since loss or gradient were not finite; and `sample_ids` [num_steps, local replicas, A, M], read
    off the batches.
    """
    update = _update_function(config, state, distribution, plan, compiler, position, noise)

    def one_step(batches: Iterator[Any], step: tf.Tensor) -> dict[str, tf.Tensor]:
        asked = _now(config)
        with tf.control_dependencies([asked, position.mark(step, WAITING_FOR_BATCH)]):
            batch = next(batches)
        sample_ids = tf.stack(distribution.local(batch["sample_ids"]))
        with tf.control_dependencies([sample_ids]):
            arrived = _now(config)
        result = distribution.run(update, (batch, step, arrived))
        reported = {name: distribution.local(value)[0] for name, value in result.items()}
        return reported | {"data_wait_seconds": arrived - asked, "sample_ids": sample_ids}

    @tf.function(autograph=False)
    def train_steps(batches: Iterator[Any], first_step: tf.Tensor, num_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        history = {name: tf.TensorArray(dtype, num_steps) for name, dtype in REPORTED.items()}

        def body(index: tf.Tensor, history: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
            report = one_step(batches, first_step + tf.cast(index, tf.int64))
            return index + 1, {name: array.write(index, report[name]) for name, array in history.items()}

        _, history = tf.while_loop(lambda index, _: index < num_steps, body, (0, history), parallel_iterations=1)
        return {name: array.stack() for name, array in history.items()}

    return train_steps


def compile_evaluation(
    config: Config, weights: Mapping[str, tf.Variable], distribution: Distribution, plan: BatchPlan, compiler: Compiler
) -> Callable[[Iterator[Any], tf.Tensor], tuple[tf.Tensor, dict[str, tf.Tensor]]]:
    """A function (batches, num_batches) that returns, for each batch, the sum of its losses and how many they are, over all
    replicas: float64 [num_batches, 2]; and the outputs of the samples on this process's replicas, with their
    `sample_ids`: [num_batches, local replicas, A, M, ...]."""
    dtype, task = PRECISIONS[config.train.precision], choose_task(config)

    def micro_batch(values: list[tf.Tensor], features: Features) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        with compiled_apart(compiler == "elementwise"):
            sums, outputs = task.evaluate(dict(zip(weights, values, strict=True)), features)
        return list(sums), outputs

    of_lane = _function_of_lane(config, micro_batch, compiler, distribution.num_lanes)

    def in_all_lanes(values: list[tf.Tensor], features: Features) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        lanes = in_lanes(lambda rows, _: of_lane(values, rows), features, 0, distribution.num_lanes)
        sums, outputs = zip(*lanes, strict=True)
        return _sums(sums), {name: tf.concat([each[name] for each in outputs], 0) for name in outputs[0]}

    def replica(batch: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        values = [tf.cast(tf.convert_to_tensor(weight), dtype) for weight in weights.values()]
        features = {name: value for name, value in batch.items() if name not in BOOKKEEPING}
        # One after another, as in training: together they need not fit.
        compute = functools.partial(in_all_lanes, values)
        sums, outputs = zip(*_one_by_one(compute, features, plan.num_micro_batches), strict=True)
        totals = distribution.all_reduce(_sums(sums))
        stacked = {name: tf.stack([each[name] for each in outputs]) for name in outputs[0]}
        return totals, stacked | {"sample_ids": batch["sample_ids"]}

    @tf.function(autograph=False)
    def evaluate(batches: Iterator[Any], num_batches: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        def one_batch() -> dict[str, tf.Tensor]:
            totals, outputs = distribution.run(replica, (next(batches),))
            loss_sum, num_counted = (tf.cast(distribution.local(each)[0], tf.float64) for each in totals)
            local = {name: tf.stack(distribution.local(value)) for name, value in outputs.items()}
            return {"sums": tf.stack([loss_sum, num_counted]), **local}

        # The first batch tells what there is to be collected.
        first = one_batch()
        arrays = {name: tf.TensorArray(value.dtype, num_batches).write(0, value) for name, value in first.items()}

        def body(index: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
            batch = one_batch()
            return index + 1, {name: array.write(index, batch[name]) for name, array in arrays.items()}

        _, arrays = tf.while_loop(lambda index, _: index < num_batches, body, (1, arrays), parallel_iterations=1)
        outputs = {name: array.stack() for name, array in arrays.items()}
        return outputs.pop("sums"), outputs

    return evaluate


def _one_by_one(compute: Callable[[Features], Any], features: Features, num_micro_batches: int) -> Iterator[Any]:
    """What `compute` returns for each micro-batch, each begun when the one before it is done."""
    done: list[tf.Tensor] = []
    for index in range(num_micro_batches):
        with tf.control_dependencies(done):
            rows = {name: tf.identity(value[index]) for name, value in features.items()}
        result = compute(rows)
        done = tf.nest.flatten(result)
        yield result


def _function_of_lane(config: Config, function: Callable[..., Any], compiler: Compiler, num_lanes: int) -> Callable[..., Any]:
    """`function` for each lane to call. Of several it is not inlined: so the graph has it, and TensorFlow prepares it, once.
    But where memory is to be saved it is: then each gradient is added to those of the other lanes as soon as it is there."""
    attributes = {"_noinline": True} if num_lanes > 1 and config.model.recompute == "none" else None
    return tf.function(function, jit_compile=compiler == "xla", autograph=False, experimental_attributes=attributes)


def _sums(parts: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
    """Of the first of each part, of the second, and so on."""
    return [functools.reduce(tf.add, each) for each in zip(*parts, strict=True)]


def _update_function(
    config: Config,
    state: TrainingState,
    distribution: Distribution,
    plan: BatchPlan,
    compiler: Compiler,
    position: GraphPosition,
    noise: Noise | None,
) -> Callable[[dict[str, tf.Tensor], tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """One update, as a replica sees it."""
    trained = [name for name, parameter in state.parameters.items() if parameter.is_trainable]
    frozen = [name for name in state.weights if name not in trained]
    differentiation = _differentiation(config, choose_task(config), trained, frozen, compiler)
    differentiate = _function_of_lane(config, differentiation, compiler, distribution.num_lanes)
    dtype = PRECISIONS[config.train.precision]
    scaled = dtype == tf.float16
    # In float16 the loss scale is that of a micro-batch's mean, as is customary: a sum over many tokens has gradients that
    # leave float16's range at any scale. It does not depend on the number of replicas.
    micro_batch_size = plan.global_batch_size // plan.num_micro_batches
    sum_scale = 1.0 / (micro_batch_size * config.data.sequence_length) if scaled else 1.0
    # On the wire, too, sums of gradients may leave float16's range: they are divided by about the number of tokens.
    wire_scale = 1.0 / (plan.global_batch_size * config.data.sequence_length * sum_scale)

    reduce = _reduction(config, state, distribution, wire_scale)
    change_weights = _change_of_weights(config, state, distribution, trained, compiler)

    def update(batch: dict[str, tf.Tensor], step: tf.Tensor, arrived: tf.Tensor) -> dict[str, tf.Tensor]:
        # The clock is to be read before the computation is under way, and the mark set when it is.
        with tf.control_dependencies([arrived]):
            computing = position.mark(step, COMPUTING)
        with tf.control_dependencies([computing]):
            batch = {name: tf.identity(value) for name, value in batch.items()}
        computed = {name: tf.cast(tf.convert_to_tensor(weight), dtype) for name, weight in state.weights.items()}
        values, fixed = ([computed[name] for name in names] for names in (trained, frozen))
        features = {name: value for name, value in batch.items() if name not in BOOKKEEPING}
        loss_scale = tf.convert_to_tensor(state.loss_scale)

        def micro_batch(index: tf.Tensor | int) -> list[tf.Tensor]:
            def of_lane(rows: Features, first_row: tf.Tensor | int) -> list[tf.Tensor]:
                return differentiate(values, fixed, rows, first_row, step, loss_scale * sum_scale)

            def sums() -> list[tf.Tensor]:
                rows = {name: value[index] for name, value in features.items()}
                return _sums(in_lanes(of_lane, rows, batch["first_row"][index], distribution.num_lanes))

            if noise is None:
                return sums()
            # A private update's sample rarely fills all rows that there are for it.
            nothing = [*(tf.zeros(value.shape) for value in values), *(tf.constant(0.0) for _ in range(3))]
            return tf.cond(tf.reduce_any(batch["sample_ids"][index] >= 0), sums, lambda: nothing)

        totals = _after(lambda: position.mark(step, REDUCING), _sum_over_micro_batches(micro_batch, plan.num_micro_batches))
        reduced = reduce(totals)
        *gradients, length, loss_sum, num_counted, num_tokens = _after(lambda: position.mark(step, UPDATING), reduced)

        divisor = tf.maximum(num_counted, 1.0) * loss_scale * sum_scale
        if noise is not None:
            gradients = noise.added(gradients, batch["first_position"][0] // plan.global_batch_size)
            length, divisor = tf.linalg.global_norm(gradients), float(config.train.global_batch_size)
        norm = length / divisor
        clip_norm = config.optimizer.clip_norm
        factor = (1.0 if clip_norm is None else tf.minimum(1.0, clip_norm / norm)) / divisor
        rate = learning_rate(config.optimizer, config.train.steps, step)
        # Sums over all replicas: they agree on whether the update is made.
        finite = tf.math.is_finite(norm) if noise is not None else tf.math.is_finite(norm) & tf.math.is_finite(loss_sum)
        # In float16 a gradient that overflows is no divergence while the loss scale can be lowered.
        overflowed = tf.math.is_finite(loss_sum) & (loss_scale > 1.0) if scaled else tf.constant(False)
        change_weights(gradients, factor, rate, step, finite)
        if scaled:
            change = (state.loss_scale, state.steps_since_overflow, finite)
            change_scale = _loss_scale_update(config.train.loss_scale_growth_steps)
            distribution.update(change_scale, [change], only_if=tf.constant(True))
        return {
            "loss": loss_sum / tf.maximum(num_counted, 1.0),
            "num_tokens": num_tokens,
            "gradient_norm": norm,
            "learning_rate": rate,
            "loss_scale": loss_scale,
            "is_skipped": ~finite & ~overflowed,
        }

    return update


def _differentiation(
    config: Config, task: Task, trained: list[str], frozen: list[str], compiler: Compiler
) -> Callable[..., list[tf.Tensor]]:
    """A pure function (trained weights, frozen ones, features, first_row, step, loss_scale) -> [*gradients, loss sum, how
    many losses, how many tokens], float32; the weights are in the precision of the computation. With `privacy` the gradients
    are sums of those of single samples, each clipped."""
    is_float16, privacy = config.train.precision == "float16", config.privacy

    def differentiate(
        values: list[tf.Tensor],
        fixed: list[tf.Tensor],
        features: Features,
        first_row: tf.Tensor,
        step: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> list[tf.Tensor]:
        def of_rows(features: Features, key: DropoutKey) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
            with compiled_apart(compiler == "elementwise"), tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                own = dict(zip(trained, values, strict=True))
                scale = loss_scale if is_float16 else None
                # Not in private training: what computes the gradients of all samples at once cannot scatter.
                with lookups_apart(own if privacy is None else {}, tape) as lookups:
                    weights = own | dict(zip(frozen, fixed, strict=True))
                    loss_sum, num_counted = task.loss_sums(weights, features, key, scale)
                scaled_loss = loss_sum if scale is None else loss_sum * scale
            sources = [*values, *lookups.rows]
            found = tape.gradient(scaled_loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            by_weights = {name: tf.cast(each, tf.float32) for name, each in zip(trained, found, strict=False)}
            return list(lookups.added(by_weights, found[len(trained) :]).values()), loss_sum, num_counted

        key = DropoutKey(seed=tf.stack([tf.constant(config.run.seed, tf.int64), step]), first_row=first_row)
        if privacy is None:
            gradients, loss_sum, num_counted = of_rows(features, key)
        else:
            gradients, loss_sum, num_counted = clipped_sums(of_rows, features, key, privacy.clip_norm)
        return [*gradients, loss_sum, num_counted, task.num_tokens(features)]

    return differentiate


def _sum_over_micro_batches(compute: Callable[[tf.Tensor | int], list[tf.Tensor]], num_micro_batches: int) -> list[tf.Tensor]:
    """The sums of what `compute` returns for each micro-batch, one micro-batch at a time."""
    sums = compute(0)
    if num_micro_batches > 1:

        def add(index: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            return index + 1, [total + part for total, part in zip(sums, compute(index), strict=True)]

        _, sums = tf.while_loop(lambda index, _: index < num_micro_batches, add, (1, sums), parallel_iterations=1)
    return sums


def _reduction(
    config: Config, state: TrainingState, distribution: Distribution, wire_scale: float
) -> Callable[[list[tf.Tensor]], list[tf.Tensor]]:
    """From a replica's sums to those over all: [*gradients, their norm, loss sum, how many losses, how many tokens]. Where
    the optimizer is sharded the gradients are the rank's pieces, and the norm still that of the whole."""
    share = state.share

    def whole(sums: list[tf.Tensor]) -> list[tf.Tensor]:
        *gradients, loss_sum, num_counted, num_tokens = _reduce(config, distribution, sums, wire_scale)
        return [*gradients, tf.linalg.global_norm(gradients), loss_sum, num_counted, num_tokens]

    def pieces(sums: list[tf.Tensor]) -> list[tf.Tensor]:
        assert share is not None
        gradients, norm, counts = reduce_scatter(config, distribution, share, sums, wire_scale)
        return [*gradients, norm, *counts]

    return whole if share is None else pieces


def _reduce(config: Config, distribution: Distribution, sums: list[tf.Tensor], wire_scale: float) -> list[tf.Tensor]:
    """The sums over all replicas, in one collective; with a float16 wire, loss and counts go in another, as float32."""
    if config.distribution.wire_precision == "float32" or distribution.num_replicas == 1:
        return distribution.all_reduce(sums)
    gradients, counts = sums[:-3], sums[-3:]
    narrow = [tf.cast(gradient * wire_scale, tf.float16) for gradient in gradients]
    wide = [tf.cast(gradient, tf.float32) / wire_scale for gradient in distribution.all_reduce(narrow)]
    return [*wide, *distribution.all_reduce(list(counts))]


def _now(config: Config) -> tf.Tensor:
    """Seconds of the clock when the graph comes here. With op determinism TensorFlow refuses to read it; Python does not."""
    if not config.train.deterministic:
        return tf.timestamp()
    return tf.ensure_shape(tf.numpy_function(lambda: np.float64(time.time()), [], tf.float64), ())


def _after(mark: Callable[[], tf.Operation], tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """The tensors, once all of them are there and `mark` has been carried out.

    When TensorFlow inlines the function that they come from, who waits for that function waits for its side effects alone,
    of which it has none, and not for what it returns: so the mark waits for copies (which are optimized away later).
    """
    with tf.control_dependencies(tf.identity_n(tensors)[:1]):
        marked = mark()
    with tf.control_dependencies([marked]):
        return tf.identity_n(tensors)


def _change_of_weights(
    config: Config, state: TrainingState, distribution: Distribution, trained: list[str], compiler: Compiler
) -> Callable[[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], None]:
    """What changes all trained weights by (gradients, factor, rate, step), where the last argument is true."""
    if state.share is not None:
        return sharded_update(config, state, distribution, trained)
    change = weight_update(config, is_compiled=compiler == "elementwise")

    def change_all(gradients: list[tf.Tensor], factor: tf.Tensor, rate: tf.Tensor, step: tf.Tensor, only_if: tf.Tensor) -> None:
        decay = config.train.average_decay
        shared = (factor, update_scalars(config.optimizer, rate, step), None if decay is None else kept_of_average(decay, step))
        changes = [
            (state.weights[name], *state.beside(name), gradient, state.parameters[name], *shared)
            for name, gradient in zip(trained, gradients, strict=True)
        ]
        distribution.update(change, changes, only_if=only_if)

    return change_all


def _loss_scale_update(growth_steps: int) -> Callable[..., None]:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740): halved at an overflow, doubled after a quiet time."""

    def change(loss_scale: tf.Variable, steps_since_overflow: tf.Variable, finite: tf.Tensor) -> None:
        quiet = tf.where(finite, steps_since_overflow + 1.0, 0.0)
        grown = tf.where(quiet >= growth_steps, loss_scale * 2.0, tf.convert_to_tensor(loss_scale))
        loss_scale.assign(tf.where(finite, grown, tf.maximum(1.0, loss_scale * 0.5)))
        steps_since_overflow.assign(tf.where(quiet >= growth_steps, 0.0, quiet))

    return change
