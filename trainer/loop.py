"""Training from beginning to end: `train` is the explanation of the product."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.config import BatchPlan, Config, plan_batches
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.pipeline import training_batches
from trainer.distribution import Distribution, any_process, connect, gather
from trainer.errors import Diverged, Stopped
from trainer.evaluate import Evaluation
from trainer.ledger import Ledger
from trainer.models.parameters import parameters
from trainer.monitor import Monitor, throughput
from trainer.resume import restore, save
from trainer.run_directory import RunDirectory
from trainer.step import choose_compiler, compile_training, create_state
from trainer.stop import StopRequest

logger = logging.getLogger(__name__)


def train(config: Config, *, fresh: bool = False, command_line: Sequence[str] = ()) -> None:
    """Trains until `train.steps`, from the run's newest good checkpoint where it has one.

    `fresh` refuses to go on from a checkpoint. Raises UserError, before anything is written, where the configuration, the
    data or this machine do not allow the run; Diverged; and, after a signal, Stopped when everything is saved.
    """
    # What the run is made of. Whatever the user got wrong comes to light here.
    corpus = open_corpus(config)
    run = RunDirectory(Path(config.run.directory) / config.run.name)
    distribution = connect(config.distribution)
    if not distribution.is_chief:
        logging.getLogger().setLevel(logging.WARNING)
    plan = plan_batches(config.train, distribution.num_replicas)
    with distribution.scope():
        state = create_state(config, corpus.manifest.vocabulary_size)
    progress = restore(run, config, corpus, state, distribution, fresh=fresh)

    if progress.step >= config.train.steps:
        logger.info("nothing to do: %s has all of its %d steps; raise train.steps to go on", run.path, config.train.steps)
        distribution.close()
        return

    # The order of the data is a function of the step: a resumed run differs from a new one only in where it begins.
    step, num_steps = progress.step, config.train.steps
    use_xla, reason = choose_compiler(config)
    train_steps = compile_training(config, state, distribution, plan, use_xla)
    evaluation = Evaluation(config, state.weights, distribution, plan, corpus.validation, use_xla)
    batches = distribution.iterate(training_batches(corpus.train, corpus.order, plan, step, distribution.replicas))

    # The chief alone writes.
    if distribution.is_chief:
        surroundings = {"backend": distribution.name, "num_replicas": distribution.num_replicas}
        run.begin(config, corpus.tokenizer, step, command_line, surroundings)
    monitor = _open_monitor(config, corpus, distribution, run, step)
    ledger = Ledger(run.ledger if distribution.is_chief else None, progress, plan)
    _announce(config, corpus, distribution, plan, monitor, f"{'XLA' if use_xla else 'graph'}: {reason}")

    stopping = False
    with StopRequest() as stop, monitor:
        while step < num_steps and not stopping:
            # Many updates in one call. The first call makes a single one, so that compiling is not counted as training.
            count = 1 if step == progress.step else _steps_until_boundary(config, step)
            began = time.perf_counter()
            history = _to_host(train_steps(batches, tf.constant(step, tf.int64), tf.constant(count)))
            seconds = time.perf_counter() - began
            _refuse_divergence(config, history, step, run)
            ledger.consume(gather(distribution, history["sample_ids"]))
            monitor.write_steps(step, history, seconds)
            step += count

            validation_loss = None
            if evaluation.is_due(step):
                result = evaluation.run()
                monitor.write_validation(step, result)
                validation_loss = result.loss

            stopping = any_process(distribution, stop.made)
            is_saved = stopping or step == num_steps or step % config.checkpoint.every == 0
            if is_saved and distribution.is_chief:
                save(run, config, corpus, state, distribution, ledger.progress(validation_loss))
    distribution.close()
    if step < num_steps:
        raise Stopped(f"stopped after step {step}, which is saved; start it again and it goes on from there")


def _steps_until_boundary(config: Config, step: int) -> int:
    """How many updates to make before something other than an update is due."""
    intervals = [config.train.steps_per_loop, config.checkpoint.every, config.evaluation.every or config.train.steps]
    return min(config.train.steps, *(step - step % every + every for every in intervals)) - step


def _to_host(history: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in history.items()}


def _refuse_divergence(config: Config, history: Mapping[str, np.ndarray], first_step: int, run: RunDirectory) -> None:
    """Ends the run before weights that are no longer numbers reach a checkpoint. In float16 an overflowing gradient only
    lowers the loss scale."""
    watched = ("loss",) if config.train.precision == "float16" else ("loss", "gradient_norm")
    for name in watched:
        finite = np.isfinite(history[name])
        if not finite.all():
            index = int(np.argmin(finite))
            raise Diverged(
                f"{name} of step {first_step + index + 1} is {history[name][index]}; the checkpoints in {run.checkpoints} are "
                "from before it: lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or set optimizer.clip_norm"
            )


def _open_monitor(config: Config, corpus: Corpus, distribution: Distribution, run: RunDirectory, step: int) -> Monitor:
    """The chief's monitor writes; the others' does nothing."""
    vocabulary_size, num_devices = corpus.manifest.vocabulary_size, throughput.num_devices(distribution)
    if not distribution.is_chief:
        return Monitor(config, vocabulary_size, num_devices, writers=())
    return Monitor.of_run(config, vocabulary_size, num_devices, run, step)


def _announce(
    config: Config, corpus: Corpus, distribution: Distribution, plan: BatchPlan, monitor: Monitor, compiler: str
) -> None:
    num_weights = sum(
        each.num_elements
        for each in parameters(config.model, corpus.manifest.vocabulary_size, config.data.sequence_length).values()
    )
    tokens = plan.global_batch_size * config.data.sequence_length
    epoch = corpus.order.num_samples / plan.global_batch_size
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
    logger.info("peak taken for utilization: %.3g FLOP/s, %s", monitor.peak_flops_per_second, monitor.peak_source)
