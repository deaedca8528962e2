"""Validation: during training, and of a finished run for `drumline evaluate`."""

from __future__ import annotations

import functools
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.checkpoint import choose_checkpoint, read_state, read_weights
from trainer.config import METRICS, METRICS_OF_TEXTS, BatchPlan, Config, DistributionConfig, GenerationConfig, plan_batches
from trainer.data.corpus import ValidationSet, open_corpus
from trainer.data.pipeline import evaluation_batches
from trainer.distribution import Distribution, connect, gather
from trainer.encryption.files import Encryption
from trainer.errors import DataError, UserError
from trainer.heap import compiled_by_first_call
from trainer.lanes import choose_num_lanes
from trainer.run_directory import open_run
from trainer.step import Compiler, choose_compiler, compile_evaluation
from trainer.tasks.choice import choose_task
from trainer.text_evaluation import TextEvaluation
from trainer.training_state import create_weights
from trainer.weights import assign_weights

logger = logging.getLogger(__name__)

ORDER_SEED = 0  # one order of the validation samples for all runs, so that their losses compare


@dataclass(frozen=True)
class Result:
    """Metrics by the names of `config.METRICS`, over how many losses they are, how long it took, and whether that was all.

    The loss is a mean in nats: over tokens in tasks that predict tokens, over samples in the others.
    """

    metrics: Mapping[str, float]  # what a checkpoint may be chosen by: `checkpoint.best_metric`
    num_counted: int
    counted: str  # what they are: `num_tokens` or `num_samples`
    seconds: float
    is_whole: bool


class Evaluation:
    """Evaluates the weights as they are, on all replicas together."""

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, tf.Variable],
        distribution: Distribution,
        plan: BatchPlan,
        validation: ValidationSet,
        compiler: Compiler,
        generation: GenerationConfig | None = None,
    ) -> None:
        """`generation` says how the texts of `evaluation.generate` are written; None for greedily."""
        samples = validation.samples
        self._every = config.evaluation.every if samples else None
        self._last_step = config.train.steps
        self._distribution = distribution
        self._evaluate = compiled_by_first_call(compile_evaluation(config, weights, distribution, plan, compiler))
        self._task, self._samples = choose_task(config), samples
        self._has_perplexity = "perplexity" in METRICS[config.task]
        self._counted = "num_tokens" if self._has_perplexity else "num_samples"
        self._is_compiled = False
        self.longest_call_seconds: float | None = None  # of those that did not compile
        self._texts: TextEvaluation | None = None
        self._has_written = False
        if samples:
            if config.evaluation.generate:
                written = (generation or GenerationConfig()).model_copy(update={"batch_size": plan.rows_per_micro_batch})
                self._texts = TextEvaluation(config, weights, distribution, written)
            self._batches, self.num_batches = evaluation_batches(
                samples, plan, config.evaluation.batches, distribution.replicas, ORDER_SEED, validation.chosen
            )

    def is_due(self, step: int) -> bool:
        return self._every is not None and step > 0 and (step % self._every == 0 or step == self._last_step)

    def calls(self, batches_per_call: int) -> Iterator[Result]:
        """Evaluates in calls of so many batches, and after each yields the result so far; the last is that of all.

        Between calls the evaluation may be given up, by all processes together. How it is divided changes no bit.
        """
        iterator = self._distribution.iterate(self._batches)
        began, loss_sum, num_counted, done = time.perf_counter(), 0.0, 0, 0
        collected: list[dict[str, np.ndarray]] = []

        def result(others: Mapping[str, float], is_whole: bool) -> Result:
            loss = loss_sum / max(num_counted, 1)
            metrics = {"loss": loss}
            if self._has_perplexity:
                metrics["perplexity"] = math.exp(min(loss, 700.0))  # beyond it there is no double to hold it
            return Result({**metrics, **others}, num_counted, self._counted, time.perf_counter() - began, is_whole)

        while done < self.num_batches:
            # The first call makes a single one: it compiles.
            count = min(batches_per_call, self.num_batches - done) if self._is_compiled else 1
            call_began = time.perf_counter()
            sums, outputs = self._evaluate(iterator, tf.constant(count))
            for batch_loss, batch_counted in sums.numpy().tolist():
                loss_sum, num_counted = loss_sum + batch_loss, num_counted + int(batch_counted)
            collected.append({name: value.numpy() for name, value in outputs.items()})
            self._took(call_began, has_compiled=not self._is_compiled)
            self._is_compiled, done = True, done + count
            if done < self.num_batches:
                yield result({}, is_whole=False)
        metrics: dict[str, float] = {}
        if len(collected[0]) > 1:  # more than the ids
            outputs, sample_ids = self._gather(collected)
            metrics |= self._task.metrics(outputs, self._samples, sample_ids)
        if self._texts is not None:
            texts: dict[int, str] = {}
            # The first batch compiles, and nothing is known of how long that takes.
            self.longest_call_seconds = self.longest_call_seconds if self._has_written else None
            yield result(metrics, is_whole=False)
            call_began = time.perf_counter()
            for batch in self._texts.write():
                texts |= batch
                self._took(call_began, has_compiled=False)
                yield result(metrics, is_whole=False)
                call_began = time.perf_counter()
            self._has_written = True
            metrics |= self._texts.score(texts)
        yield result(metrics, is_whole=True)

    def _took(self, began: float, *, has_compiled: bool) -> None:
        if not has_compiled:
            self.longest_call_seconds = max(self.longest_call_seconds or 0.0, time.perf_counter() - began)

    def _gather(self, collected: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The outputs of all processes, one row a sample in the order of their ids, without padding; and the ids."""

        def rows(name: str) -> np.ndarray:
            values = np.concatenate([each[name] for each in collected])
            gathered = gather(self._distribution, values)
            # processes, batches, replicas, micro-batches, rows
            return gathered.reshape(-1, *gathered.shape[5:])

        sample_ids = rows("sample_ids")
        places = np.flatnonzero(sample_ids >= 0)
        places = places[np.argsort(sample_ids[places], kind="stable")]
        outputs = {name: rows(name)[places] for name in collected[0] if name != "sample_ids"}
        return outputs, sample_ids[places]

    def run(self) -> Result:
        """The result of all batches."""
        *_, result = self.calls(self.num_batches)
        return result


def evaluate_run(
    path: Path,
    checkpoint: str = "latest",
    num_batches: int | None = None,
    num_texts: int | None = None,
    generation: GenerationConfig | None = None,
) -> dict[str, object]:
    """Evaluates a run's checkpoint on its validation data, on this machine's first device.

    `checkpoint` is a step, `best` or `latest`; `num_batches` overrides the configuration's. Metrics of texts are of
    `num_texts` (None: all), written as `generation` says. Raises UserError where the run, the checkpoint or the validation
    data are not there, or texts are asked of a task that has no metric of them.
    """
    run, config = open_run(path)
    chosen = choose_checkpoint(run.checkpoints, checkpoint, config.checkpoint.best_metric)
    if not config.data.validation and config.data.folds is None:
        raise DataError(f"{run.config}: data.validation is empty; there is nothing to evaluate on")
    has_texts = not set(METRICS[config.task]).isdisjoint(METRICS_OF_TEXTS) and config.data.folds is None
    if not has_texts and (num_texts is not None or generation is not None):
        what = config.task if config.data.folds is None else "a fold that is held out"
        raise UserError(f"--generate, --num-beams: {what} has no metric of texts; leave them out")
    encryption = Encryption.of(config.security)
    progress, identity = read_state(chosen, encryption)
    corpus = open_corpus(config, expected_fingerprint=identity["data.tokenizer"])
    amount = (sys.maxsize if num_texts is None else num_texts) if has_texts else 0
    changes = {"batches": num_batches or config.evaluation.batches, "every": 1, "generate": amount}
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=changes)})
    choose = functools.partial(choose_num_lanes, config, corpus.manifest.sizes)
    distribution = connect(DistributionConfig(backend="single"), choose)
    weights = create_weights(config, corpus.manifest.sizes)
    assign_weights(weights, read_weights(chosen, encryption), str(chosen))
    plan = plan_batches(config.train, distribution.num_replicas)
    compiler, _ = choose_compiler(config)
    result = Evaluation(config, weights, distribution, plan, corpus.validation, compiler, generation).run()
    return {
        "run": str(path),
        "step": progress.step,
        **result.metrics,
        result.counted: result.num_counted,
        "seconds": result.seconds,
    }
