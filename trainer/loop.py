"""Training from beginning to end: `train` is the explanation of the product."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import BatchPlan, Config, plan_batches
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.pipeline import training_batches
from trainer.distribution import Distribution, any_process, chiefs, connect, gather, make_deterministic
from trainer.divergence import Divergence, DivergenceGuard
from trainer.errors import Diverged, Stopped
from trainer.evaluate import Evaluation
from trainer.heap import compiled_by_first_call
from trainer.lanes import choose_num_lanes
from trainer.monitor.monitor import Monitor
from trainer.monitor.watchdog import Watchdog
from trainer.pace import Pace
from trainer.position import GraphPosition
from trainer.privacy.training import PrivateTraining, num_rows, open_privacy
from trainer.progress import Progress
from trainer.records import Records, open_records
from trainer.resume import restore, roll_back
from trainer.run_directory import RunDirectory, has_validation
from trainer.step import choose_compiler, compile_training
from trainer.stop import StopRequest
from trainer.tasks.parameters import run_parameters
from trainer.training_state import TrainingState, create_state, own_share

logger = logging.getLogger(__name__)


def train(
    config: Config, *, fresh: bool = False, allowed_changes: Sequence[str] = (), command_line: Sequence[str] = ()
) -> None:
    """Trains until `train.steps`, from the run's newest good checkpoint where it has one.

    `fresh` refuses to go on from a checkpoint; `allowed_changes` are configuration keys that may differ from the
    checkpoint's although they change what the numbers mean. Raises UserError, before anything is written, where the
    configuration, the data or this machine do not allow the run; Diverged; and, after a signal, Stopped when everything
    is saved.
    """
    run = RunDirectory.of(config)
    with Watchdog(config.watchdog, run.path) as watchdog:
        # What the run is made of. Whatever the user got wrong comes to light here.
        corpus = open_corpus(config)
        if config.train.deterministic:
            make_deterministic(config.run.seed)
        distribution = connect(config.distribution, functools.partial(choose_num_lanes, config, corpus.manifest.sizes))
        if not distribution.is_chief:
            logging.getLogger().setLevel(logging.WARNING)
        watchdog.join(distribution)
        plan = plan_batches(config.train, distribution.num_replicas, num_rows(config, corpus))
        with distribution.scope():
            state = create_state(
                config, corpus.manifest.sizes, own_share(config, distribution.rank, distribution.num_processes)
            )
        watchdog.phase("going on from a checkpoint")
        progress = restore(run, config, corpus, state, distribution, fresh=fresh, allowed_changes=allowed_changes)

        private = open_privacy(config, corpus, plan, progress)
        if private is not None:
            config = private.limited(config)
        compiler, reason = choose_compiler(config)
        position = GraphPosition()
        watchdog.position = position.read
        noise = None if private is None else private.noise
        train_steps = compiled_by_first_call(compile_training(config, state, distribution, plan, compiler, position, noise))
        evaluation_plan = plan_batches(config.train, distribution.num_replicas)
        evaluation = Evaluation(config, state.evaluated, distribution, evaluation_plan, corpus.validation, compiler)
        owes_evaluation = evaluation.is_due(progress.step) and _lacks_validation(run, distribution, progress.step)
        step, num_steps = progress.step, _last_step(config, private, progress)
        if step >= num_steps and not owes_evaluation:
            logger.info("nothing to do: %s has all of its %d steps; raise train.steps to go on", run.path, num_steps)
            distribution.close()
            return

        # Not before `connect`: workers of a cluster then take SIGTERM for themselves (TensorFlow's preemption notifier).
        with (
            StopRequest() as stop,
            open_records(config, run, corpus, distribution, plan, progress, command_line) as records,
        ):
            _announce(config, corpus, distribution, plan, records.monitor, f"compile {compiler}: {reason}")
            if private is not None:
                private.announce(config)
            # The order of the data is a function of the position: a resumed run differs from a new one only in where it
            # begins, and so does one that goes back and steps over what made it diverge.
            batches = _batches_from(progress, corpus, plan, distribution, private)
            guard, pace = DivergenceGuard(config.divergence, progress), Pace(config)
            stopping = _agree(distribution, stop, records, 0.0).stop
            if owes_evaluation and not stopping:
                stopping = not _evaluate(evaluation, distribution, stop, watchdog, records, pace, private)

            while step < num_steps and not stopping:
                # Many updates in one call: Python comes up for air only where something is due.
                count = min(pace.next_call(step), num_steps - step)
                watchdog.phase(f"training, steps {step + 1} to {step + count}", pace.expected_seconds(count))
                began = time.perf_counter()
                history = _to_host(train_steps(batches, tf.constant(step, tf.int64), tf.constant(count)))
                seconds = time.perf_counter() - began
                records.write_steps(history, gather(distribution, history["sample_ids"]), seconds)
                step += count

                divergence = guard.judge(step - count, history)
                if divergence is not None:
                    watchdog.phase("going back to a checkpoint")
                    progress = _go_back(config, run, state, distribution, records, divergence)
                    batches = _batches_from(progress, corpus, plan, distribution, private)
                    step, guard = progress.step, DivergenceGuard(config.divergence, progress)
                    num_steps = _last_step(config, private, progress)
                    continue

                owes_evaluation = evaluation.is_due(step)
                if owes_evaluation:
                    owes_evaluation = not _evaluate(evaluation, distribution, stop, watchdog, records, pace, private)
                agreed = _agree(distribution, stop, records, seconds / count)
                stopping = agreed.stop
                pace.took(agreed.step_seconds)
                if agreed.is_failing:
                    records.refuse_failing()
                # While updates are being skipped, what would be saved may be on its way into a divergence.
                is_due = step % config.checkpoint.every == 0 and guard.skipped_in_a_row == 0
                is_asked_for = stopping or agreed.save or step == num_steps
                if is_asked_for or is_due:
                    watchdog.phase("saving")
                    records.save(state, guard, may_be_left_out=not is_asked_for)

            watchdog.phase("waiting until the checkpoint is whole")
            records.wait_until_saved(state, guard)
        watchdog.phase("leaving together")
        distribution.close()
        if stopping and (step < num_steps or owes_evaluation):
            place = f"after step {step}, which is saved" if step else "before its first step"
            raise Stopped(f"stopped {place}; start it again and it goes on from there")


@dataclass(frozen=True)
class _Agreement:
    """What all processes know alike after a call: whether one of them was asked to stop or to save, whether the chief
    cannot save any more, and how long an update took it."""

    stop: bool
    save: bool
    is_failing: bool
    step_seconds: float


def _agree(distribution: Distribution, stop: StopRequest, records: Records, step_seconds: float) -> _Agreement:
    microseconds = round(1e6 * step_seconds) if distribution.is_chief else 0
    mine = np.array([stop.stop, stop.take_save(), records.is_failing, microseconds], np.int64)
    stopping, saving, failing, total = distribution.sum_over_processes(mine).tolist()
    return _Agreement(bool(stopping), bool(saving), bool(failing), total / 1e6)


def _batches_from(
    progress: Progress, corpus: Corpus, plan: BatchPlan, distribution: Distribution, private: PrivateTraining | None
) -> Iterator[Any]:
    order = corpus.order if private is None else private.order
    return distribution.iterate(training_batches(corpus.train, order, plan, progress.num_samples, distribution.replicas))


def _last_step(config: Config, private: PrivateTraining | None, progress: Progress) -> int:
    return config.train.steps if private is None else private.last_step(config, progress)


def _to_host(history: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in history.items()}


def _evaluate(
    evaluation: Evaluation,
    distribution: Distribution,
    stop: StopRequest,
    watchdog: Watchdog,
    records: Records,
    pace: Pace,
    private: PrivateTraining | None,
) -> bool:
    """Evaluates and writes the result, of private training with the epsilon that is spent; False where it was given up, since a
    process was asked to stop."""
    step = records.progress.step
    watchdog.phase(f"evaluation at step {step}", evaluation.longest_call_seconds)
    for result in evaluation.calls(pace.largest_call):
        if result.is_whole:
            spent = {} if private is None else {"epsilon": private.epsilon(records.progress)}
            records.write_validation(replace(result, metrics={**result.metrics, **spent}))
        elif any_process(distribution, stop.stop):
            logger.info("step %d: the evaluation is given up, since the run is to stop; it will be made up for", step)
            return False
        watchdog.phase(f"evaluation at step {step}", evaluation.longest_call_seconds)
    return True


def _lacks_validation(run: RunDirectory, distribution: Distribution, step: int) -> bool:
    """Whether the evaluation at the step that the run goes on from was given up."""
    return bool(chiefs(distribution, int(run.metrics.exists() and not has_validation(run.metrics, step))))


def _go_back(
    config: Config,
    run: RunDirectory,
    state: TrainingState,
    distribution: Distribution,
    records: Records,
    divergence: Divergence,
) -> Progress:
    """Back to the last good checkpoint before a divergence, and over the samples that led there.

    Raises Diverged where that was done as often as it may be. Where going back has led no further than before, it goes
    back beyond the checkpoint that it began from.
    """
    rollbacks = records.progress.rollbacks
    gives_up = len(rollbacks) >= config.divergence.max_rollbacks
    before_step = divergence.begun
    if rollbacks and divergence.step <= rollbacks[-1].from_step:
        before_step = min(before_step, rollbacks[-1].to_step)
    records.wait_for_save()
    target = roll_back(run, config, state, distribution, before_step)
    if gives_up:
        tried = "".join(f"; went back {rollback}" for rollback in rollbacks)
        raise Diverged(
            f"step {divergence.step}: {divergence.reason}{tried}; that is as often as divergence.max_rollbacks allows; the "
            f"checkpoints in {run.checkpoints} are from before it: lower optimizer.learning_rate, lengthen "
            "optimizer.warmup_steps, or set optimizer.clip_norm"
        )
    rollback = records.roll_back(target, divergence)
    if distribution.is_chief:
        logger.warning("diverged: went back %s", rollback)
    return records.progress


def _announce(
    config: Config, corpus: Corpus, distribution: Distribution, plan: BatchPlan, monitor: Monitor, compiler: str
) -> None:
    num_weights = sum(each.num_elements for each in run_parameters(config, corpus.manifest.sizes).values())
    tokens = config.train.global_batch_size * config.data.sequence_length
    epoch = corpus.order.num_samples / config.train.global_batch_size
    logger.info(
        "run %s: %s parameters, %s tokens an update, %.1f updates an epoch",
        config.run.name,
        f"{num_weights:,}",
        f"{tokens:,}",
        epoch,
    )
    logger.info(
        "%s: replicas %d, each %d x %d sequences an update; %s; %s",
        distribution.name,
        plan.num_replicas,
        plan.num_micro_batches,
        plan.rows_per_micro_batch,
        config.train.precision,
        compiler,
    )
    if distribution.num_lanes > 1:
        rows = plan.rows_per_micro_batch // distribution.num_lanes
        logger.info("lanes: %d, each of which computes %d sequences on a core of its own", distribution.num_lanes, rows)
    if config.train.average_decay is not None:
        logger.info("evaluations are of the weights' moving average (train.average_decay %g)", config.train.average_decay)
    logger.info("peak taken for utilization: %.3g FLOP/s, %s", monitor.peak_flops_per_second, monitor.peak_source)
