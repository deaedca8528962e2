"""One attempt at a trial: its runs, one after another, each a process, until they are done, given up, or interrupted."""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import optuna

from launch import processes
from launch.plan import Process
from trainer.config import SearchConfig
from trainer.errors import ConfigError, HangDetected, Stopped
from trainer.search.runs import (
    TrialRun,
    last_words,
    mean_and_spread,
    reached,
    read_scores,
    runs_of,
    write_configs,
    write_scores,
)
from trainer.search.space import shown
from trainer.search.trials import ALIVE_SECONDS, SCORES, SPREAD, Trials, folder_name, index_of

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 3  # of a run that was interrupted by others than us
_WATCH_SECONDS = 1.0  # between two looks at what a run has reached


class Attempt:
    """Begins with the first run that is not finished yet. `environment` is what its processes have of the machine."""

    def __init__(self, search: SearchConfig, trials: Trials, trial: optuna.Trial, folder: Path, mark: str) -> None:
        self._search, self._trials, self.trial, self._mark = search, trials, trial, mark
        self.index = index_of(trial)
        self.folder = folder / folder_name(self.index)
        self._runs: list[TrialRun] = []
        self._scores = read_scores(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: Mapping[str, str] = {}
        self._num_restarts, self._num_reported = 0, 0
        self._alive, self._watched = time.monotonic(), 0.0
        self._is_pruned = self.is_stopping = False

    def begin(self, environment: Mapping[str, str]) -> None:
        """Starts the first run; or the attempt is over at once, since its point makes no configuration."""
        self._environment = environment
        logger.info("trial %d: %s", self.index, shown(self.trial.params))
        try:
            self._runs = list(runs_of(self._search, self.trial.params, self.folder))
        except ConfigError as error:
            self._fail(str(error))
            return
        write_configs(self._runs)
        self._go_on()

    @property
    def is_over(self) -> bool:
        return self._process is None

    def look_after(self) -> None:
        """Says that it is alive, looks at what the run has reached, and goes on where it has ended."""
        now = time.monotonic()
        if now - self._alive > ALIVE_SECONDS:
            self._trials.tell_alive(self.trial)
            self._alive = now
        if self._search.pruning is not None and now - self._watched > _WATCH_SECONDS:
            self._report()
            self._watched = now
        if self._process is not None and processes.has_ended(self._process):
            processes.kill(self._process)  # what it left behind in its group
            status = self._process.wait()
            self._process = None
            self._judge(128 - status if status < 0 else status)

    def stop(self) -> None:
        """Asks the run to save and stop."""
        self.is_stopping = True
        if self._process is not None:
            processes.send(self._process.pid, signal.SIGTERM)

    def abandon(self) -> None:
        """Ends what runs at once; the trial is there to be taken again."""
        if self._process is not None:
            processes.kill(self._process)
            self._process.wait()
            self._process = None
            self._trials.give_back(self.trial)

    def _go_on(self) -> None:
        """Starts the first run that has no score, or completes the trial."""
        self._report()
        run = self._current()
        if run is None:
            self._complete()
        elif self._is_pruned:
            self._prune()
        else:
            self._start(run)

    def _current(self) -> TrialRun | None:
        return next((run for run in self._runs if run.name not in self._scores), None)

    def _start(self, run: TrialRun) -> None:
        verb = ["train"] if self._search.workers == 1 else ["launch", "local"]
        options = [] if self._search.workers == 1 else ["--workers", str(self._search.workers), "--restarts", "0"]
        command = (sys.executable, "-m", "trainer", *verb, str(run.config_path), *options)
        with run.output.open("ab") as output:
            process = Process(f"{self.index}", command, self._environment)
            self._process = processes.start(process, self._mark, output=output)

    def _judge(self, exit_code: int) -> None:
        run = self._current()
        assert run is not None
        by_signal = exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        if exit_code == 0:
            self._score(run)
        elif self.is_stopping and (exit_code == Stopped.exit_code or by_signal):
            self._trials.give_back(self.trial)
        elif self._is_pruned:
            self._prune()
        elif exit_code in (Stopped.exit_code, HangDetected.exit_code) and self._num_restarts < _MAX_RESTARTS:
            self._num_restarts += 1
            logger.warning("trial %d, %s: ended with exit code %d; started again", self.index, run.name, exit_code)
            self._start(run)
        else:
            self._fail(f"{run.name} ended with exit code {exit_code}: {last_words(run)}")

    def _score(self, run: TrialRun) -> None:
        evaluations = reached(run, self._search.metric)
        value = evaluations[-1][1] if evaluations else math.nan
        if not math.isfinite(value):
            self._fail(f"{run.name}: {self._search.metric} of its last evaluation is no finite number")
            return
        self._scores[run.name] = value
        write_scores(self.folder, self._scores)
        logger.info("trial %d, %s: %s %.4f", self.index, run.name, self._search.metric, value)
        self._num_restarts = 0
        if self.is_stopping and self._current() is not None:
            self._trials.give_back(self.trial)
        else:
            self._go_on()

    def _report(self) -> None:
        """Tells Optuna of each evaluation that is new: the mean of the finished runs' last and this one, at the step that they
        have taken together; and has the run stop where it thereby falls behind the other trials."""
        if self._search.pruning is None or self._is_pruned or self.is_stopping:
            return
        reports: list[tuple[int, float]] = []
        before: list[float] = []
        for run in self._runs:
            evaluations = reached(run, self._search.metric)
            first = len(before) * run.num_steps
            reports += [(first + step, mean_and_spread([*before, value])[0]) for step, value in evaluations]
            if run.name not in self._scores:
                break
            before.append(self._scores[run.name])
        for step, value in reports[self._num_reported :]:
            self.trial.report(value, step)
            self._num_reported += 1
            if self.trial.should_prune():
                self._is_pruned = True
                if self._process is not None:
                    processes.send(self._process.pid, signal.SIGTERM)
                return

    def _complete(self) -> None:
        scores = [self._scores[run.name] for run in self._runs]
        mean, spread = mean_and_spread(scores)
        self._note()
        self._trials.complete(self.trial, mean)
        logger.info("trial %d: %s %.4f ± %.4f", self.index, self._search.metric, mean, spread)

    def _prune(self) -> None:
        self._note()
        self._trials.prune(self.trial)
        logger.info("trial %d: given up early, since it falls behind the others", self.index)

    def _fail(self, reason: str) -> None:
        self._note()
        self._trials.fail(self.trial, reason)
        logger.warning("trial %d failed: %s", self.index, reason)

    def _note(self) -> None:
        scores = [self._scores[run.name] for run in self._runs if run.name in self._scores]
        self.trial.set_user_attr(SCORES, scores)
        self.trial.set_user_attr(SPREAD, mean_and_spread(scores)[1] if scores else 0.0)
