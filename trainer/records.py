"""All that a run writes, under one roof: the lock, the run's folder, metrics, ledger and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import numpy as np

from trainer.checkpoint_lock import DirectoryLock
from trainer.config import BatchPlan, Config
from trainer.data.corpus import Corpus
from trainer.distribution import Distribution, chiefs, on_chief
from trainer.divergence import Divergence, DivergenceGuard
from trainer.encryption.files import Encryption
from trainer.evaluate import Result
from trainer.ledger import Ledger
from trainer.monitor import throughput
from trainer.monitor.monitor import Monitor
from trainer.progress import Progress, Rollback
from trainer.resume import gather_slots, saving_context, snapshot
from trainer.run_directory import RunDirectory
from trainer.saver import CheckpointSaver
from trainer.training_state import TrainingState

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 30.0  # for the save before, once the next is due


@contextmanager
def open_records(
    config: Config,
    run: RunDirectory,
    corpus: Corpus,
    distribution: Distribution,
    plan: BatchPlan,
    progress: Progress,
    command_line: Sequence[str],
) -> Iterator[Records]:
    """Takes the lock on the checkpoints, begins the run's folder, and cuts metrics and ledger back to `progress`.

    Raises CheckpointError, on all processes, where another run holds the lock or the folder cannot be written.
    """
    surroundings = {"backend": distribution.name, "num_replicas": distribution.num_replicas}
    circumstances = {"seed": config.run.seed, "data": corpus.order_fingerprint}
    sizes, num_devices = corpus.manifest.sizes, throughput.num_devices(distribution)

    with ExitStack() as stack:

        def begin() -> tuple[DirectoryLock, CheckpointSaver]:
            lock = stack.enter_context(DirectoryLock(run.checkpoints, f"run {config.run.name} in {run.path}"))
            run.begin(config, corpus.tokenizer, progress.step, command_line, surroundings)
            saver = CheckpointSaver(run.checkpoints, config.checkpoint, Encryption.of(config.security))
            return lock, stack.enter_context(closing(saver))

        chief_holds = on_chief(distribution, begin)
        if distribution.is_chief:
            monitor = Monitor.of_run(config, sizes, num_devices, run, progress.step, distribution.num_lanes)
        else:
            monitor = Monitor(config, sizes, num_devices, writers=())
        ledger = Ledger(run.ledger if distribution.is_chief else None, progress, plan, circumstances)
        stack.enter_context(closing(ledger))
        yield Records(config, run, corpus, distribution, stack.enter_context(monitor), ledger, chief_holds)


class Records:
    """The chief writes; the other processes make the same calls, keep the same count, and write nothing."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        corpus: Corpus,
        distribution: Distribution,
        monitor: Monitor,
        ledger: Ledger,
        chief_holds: tuple[DirectoryLock, CheckpointSaver] | None,
    ) -> None:
        self._config, self._run, self._corpus, self._distribution = config, run, corpus, distribution
        self.monitor = monitor
        self._ledger = ledger
        self._lock: DirectoryLock | None = None
        self._saver: CheckpointSaver | None = None
        if chief_holds is not None:
            self._lock, self._saver = chief_holds
        self._context = saving_context(config, distribution)
        self._validation: Mapping[str, float] = ledger.progress.validation

    @property
    def progress(self) -> Progress:
        return self._ledger.progress

    def write_steps(self, history: Mapping[str, np.ndarray], sample_ids: np.ndarray, seconds: float) -> None:
        """Of updates that took `seconds` together; `sample_ids` are those of all processes."""
        self.monitor.write_steps(self.progress.step, history, seconds)
        self._ledger.consume(sample_ids, history["is_skipped"])
        self._validation = {}

    def write_validation(self, result: Result) -> None:
        self.monitor.write_validation(self.progress.step, result)
        self._validation = result.metrics

    def save(self, state: TrainingState, guard: DivergenceGuard, *, may_be_left_out: bool) -> None:
        """Takes a snapshot, and writes it while training goes on.

        Where the one before is still being written it is waited for, but not for long where this one may be left out: other
        ranks take a chief that is away for minutes for lost. Raises CheckpointError, on the chief, where another run
        has taken the lock meanwhile.
        """
        if not may_be_left_out:
            self.wait_for_save()
        if self._saver is not None:
            self._saver.wait(LONGEST_WAIT_SECONDS)
        is_busy = self._saver is not None and self._saver.is_busy
        slots = None
        if state.share is not None and not chiefs(self._distribution, int(is_busy)):
            slots = gather_slots(state, self._distribution)
        if self._saver is None or self._lock is None:
            return
        if is_busy:
            logger.warning("step %d is not saved: the save before it is still under way", self.progress.step)
            return
        self._lock.refuse_lost()
        self._ledger.sync()
        progress = replace(
            self.progress,
            validation=self._validation,
            recent_losses=guard.recent_losses,
            skipped_in_a_row=guard.skipped_in_a_row,
        )
        self._saver.save(snapshot(state, self._config, self._corpus, progress, slots), self._context)

    @property
    def is_failing(self) -> bool:
        """Whether so many saves in a row have failed that the run has to end."""
        return self._saver is not None and self._saver.failures >= self._config.checkpoint.max_failures

    def wait_until_saved(self, state: TrainingState, guard: DivergenceGuard) -> None:
        """Until the last save is whole; where it failed, saves again. Raises CheckpointError, on all processes, where that
        fails too often."""
        while True:
            self.wait_for_save()
            self.refuse_failing()
            if not chiefs(self._distribution, self._saver.failures if self._saver is not None else 0):
                return
            self.save(state, guard, may_be_left_out=False)

    def refuse_failing(self) -> None:
        """Raises CheckpointError, on all processes, where so many saves have failed that the run has to end."""
        on_chief(self._distribution, lambda: self._saver.refuse_failing() if self._saver is not None else None)

    def roll_back(self, target: Progress, divergence: Divergence) -> Rollback:
        """Tells metrics and ledger that the run goes on from `target`, beyond the samples that led to the divergence."""
        rollback = self._ledger.roll_back(target, divergence)
        self.monitor.go_back(target.step)
        self._validation = target.validation
        return rollback

    def wait_for_save(self) -> None:
        """Until nothing is being written any more, on any process. Those that wait hear of the chief all the time: a
        collective in which it is missing for minutes is taken for a stall."""
        while chiefs(self._distribution, int(self._saver is not None and self._saver.is_busy)):
            time.sleep(0.02 if self._distribution.num_processes == 1 else 0.2)
