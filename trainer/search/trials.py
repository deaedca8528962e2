"""Who tries which trial, where several processes search together and any of them may be interrupted or lost.

A trial has a number from 0 on, its `index`. Optuna's storage has a record for each attempt at one: RUNNING while a process is
at it, COMPLETE or PRUNED when it is done, FAIL with a reason when a run failed. FAIL without a reason is an attempt that was
interrupted, lost with its process, or one of two that were begun at the same time: it stands for nothing, and its trial is
there to be taken again. Of two attempts at the same trial the one with the lower number of Optuna's counts, which both
processes see alike: so none is run twice, without a lock.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from launch import processes
from trainer.config import METRICS_TO_MINIMIZE, PruningConfig, SearchConfig
from trainer.errors import UserError
from trainer.files import make_folder
from trainer.search.space import distributions_of, point_of

logger = logging.getLogger(__name__)

ALIVE_SECONDS = 20.0  # between two signs of life
LOST_SECONDS = 120.0  # without one, and the process counts as lost; clocks of machines differ by less
# Of processes that begin a search at the same time one makes the tables, and the others find them half made.
_PAUSES = (0.2, 0.5, 1.0, 2.0)
_SQLITE_SECONDS = 60.0  # for another process that writes
_INDEX, _REASON, _OWNER, _ALIVE, _TOKEN = "index", "reason", "owner", "alive", "token"
SCORES, SPREAD = "scores", "spread"


def open_study(search: SearchConfig, folder: Path, url: str | None) -> optuna.Study:
    """The search in its storage, begun where it is not there yet. Raises UserError where the storage cannot be reached."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # What is used of these works: the tests hold it.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    make_folder(folder)
    sampler: optuna.samplers.BaseSampler = (
        # Trials of other processes that are under way count as bad, so that not all try the same.
        optuna.samplers.TPESampler(seed=search.seed, constant_liar=True)
        if search.method == "bayesian"
        else optuna.samplers.RandomSampler(seed=search.seed)
    )
    for pause in (*_PAUSES, None):
        try:
            return optuna.create_study(
                study_name=search.name,
                storage=_storage(folder, url),
                direction=direction_of(search),
                sampler=sampler,
                pruner=_pruner(search.pruning),
                load_if_exists=True,
            )
        except (SQLAlchemyError, OSError, ImportError) as error:
            if pause is None:
                shown = folder / "search.db" if url is None else without_password(url)
                raise UserError(f"storage: {shown} cannot be used: {_first_line(error)}") from None
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def direction_of(search: SearchConfig) -> Literal["minimize", "maximize"]:
    return search.direction or ("minimize" if search.metric in METRICS_TO_MINIMIZE else "maximize")


def without_password(url: str) -> str:
    """A storage's URL as it may be shown."""
    scheme, separator, rest = url.partition("://")
    name, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{name.partition(':')[0]}{at}{place}" if at else url


class Trials:
    """The trials of a search, as this process sees and takes them."""

    def __init__(self, search: SearchConfig, study: optuna.Study) -> None:
        self._search = search
        self.study = study
        self._distributions = distributions_of(search)
        self._first_signs: dict[int, object] = {}  # of life, of others' attempts, as they were when we first looked

    def take(self) -> optuna.Trial | None:
        """A trial that nobody has taken, now ours; None where there is none left."""
        while (index := self._open_index()) is not None:
            trial = self._begin(index)
            if self._is_first(trial):
                return trial
            self.give_back(trial)
        return None

    def is_done(self) -> bool:
        """Whether nothing is left for this process: every trial is done, or another process is at it, and has given a sign of
        life while we looked. Who is silent may be gone, and then there is something left."""
        if self._open_index() is not None:
            return False
        return all(self._is_heard_of(trial) for trial in self._indexed() if trial.state == TrialState.RUNNING)

    def tell_alive(self, trial: optuna.Trial) -> None:
        trial.set_user_attr(_ALIVE, time.time())

    def complete(self, trial: optuna.Trial, value: float) -> None:
        self.study.tell(trial, value)

    def prune(self, trial: optuna.Trial) -> None:
        """Optuna keeps the last value that was reported."""
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr(_REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def give_back(self, trial: optuna.Trial) -> None:
        """The trial is there to be taken again."""
        self.study.tell(trial, state=TrialState.FAIL)

    def latest(self) -> list[FrozenTrial]:
        """The attempt that stands for each trial, by index; of one that is interrupted, none."""
        standing: dict[int, FrozenTrial] = {}
        for trial in self._indexed():
            if _stands(trial):
                standing.setdefault(index_of(trial), trial)
        return [standing[index] for index in sorted(standing)]

    def _is_heard_of(self, trial: FrozenTrial) -> bool:
        if _owner_of(trial)[0] == _host():
            return True
        sign = trial.user_attrs.get(_ALIVE)
        return self._first_signs.setdefault(trial.number, sign) != sign

    def _indexed(self) -> Iterator[FrozenTrial]:
        """All attempts, in the order in which they were begun."""
        return (trial for trial in self.study.get_trials(deepcopy=False) if _INDEX in trial.user_attrs)

    def _open_index(self) -> int | None:
        """The first trial that nobody is at or done with."""
        taken = set()
        for trial in self._indexed():
            if trial.state == TrialState.RUNNING and _is_lost(trial):
                logger.warning("trial %d: the process that was at it is gone; it is taken again", index_of(trial))
                self._give_up(trial)
            elif _stands(trial):
                taken.add(index_of(trial))
        return next((index for index in range(self._search.num_trials) if index not in taken), None)

    def _give_up(self, trial: FrozenTrial) -> None:
        try:
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError) as error:  # another process was quicker
            logger.debug("trial %d: %s", index_of(trial), error)

    def _begin(self, index: int) -> optuna.Trial:
        """Begins an attempt at the trial with this index. Its record is made at once with all that is in it: what Optuna makes
        first and then fills in, or queues first, two processes could take (on SQLite, whose rows cannot be locked)."""
        token = uuid.uuid4().hex
        attributes = {_INDEX: index, _OWNER: [_host(), os.getpid()], _ALIVE: time.time(), _TOKEN: token}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=self._point(index),
                distributions=self._distributions,
                user_attrs=attributes,
            )
        )
        made = next(each for each in self.study.get_trials(deepcopy=False) if each.user_attrs.get(_TOKEN) == token)
        return optuna.Trial(self.study, made._trial_id)

    def _point(self, index: int) -> dict[str, Any]:
        """The settings of a trial: of a Bayesian search those of an earlier attempt, or else what Optuna draws."""
        if self._search.method != "bayesian":
            return dict(point_of(self._search, index))
        for trial in self._indexed():
            if index_of(trial) == index:
                return trial.params
        drawn = self.study.ask(self._distributions)
        self.give_back(drawn)
        return drawn.params

    def _is_first(self, trial: optuna.Trial) -> bool:
        """Whether of all attempts at the same trial that stand this one was begun first."""
        index = index_of(trial)
        return min(each.number for each in self._indexed() if index_of(each) == index and _stands(each)) == trial.number


def index_of(trial: FrozenTrial | optuna.Trial) -> int:
    return int(trial.user_attrs[_INDEX])


def reason_of(trial: FrozenTrial) -> str | None:
    """Why a trial failed; None of one that did not."""
    return trial.user_attrs.get(_REASON)


def folder_name(index: int) -> str:
    return f"trial-{index:04d}"


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def _stands(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL or _REASON in trial.user_attrs


def _is_lost(trial: FrozenTrial) -> bool:
    host, process = _owner_of(trial)
    if host == _host():
        return not processes.is_running(process)
    begun = trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0
    return time.time() - float(trial.user_attrs.get(_ALIVE, begun)) > LOST_SECONDS


def _owner_of(trial: FrozenTrial) -> tuple[str, int]:
    """Machine and process."""
    host, process = trial.user_attrs.get(_OWNER, ("", 0))
    return host, process


def _host() -> str:
    """This machine, and in it the containers' world of process numbers."""
    return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"


def _storage(folder: Path, url: str | None) -> optuna.storages.BaseStorage:
    if url is not None and url.startswith("journal:"):
        path = Path(url.removeprefix("journal:"))
        make_folder(path.parent)
        return JournalStorage(JournalFileBackend(str(path)))
    if url is None:
        url = f"sqlite:///{folder / 'search.db'}"
    options = {"connect_args": {"timeout": _SQLITE_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _pruner(pruning: PruningConfig | None) -> optuna.pruners.BasePruner:
    match pruning:
        case None:
            return optuna.pruners.NopPruner()
        case PruningConfig(kind="successive_halving"):
            return optuna.pruners.SuccessiveHalvingPruner(pruning.least_steps, pruning.reduction_factor)
        case _:
            return optuna.pruners.MedianPruner(pruning.startup_trials, n_warmup_steps=pruning.least_steps)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
