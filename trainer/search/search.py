"""A search from beginning to end: trials are taken and their runs started, until none is left or a stop is asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import optuna

from launch import processes
from launch.machine import find_machine
from launch.plan import Machine, threads
from launch.requests import Requests
from trainer.config import METRICS, METRICS_OF_TEXTS, Config, SearchConfig
from trainer.config_io import dump_config, load_config
from trainer.data.manifest import read_manifest_of
from trainer.errors import BackendError, ConfigError, Stopped, UserError
from trainer.files import write_atomically
from trainer.search.attempt import Attempt
from trainer.search.pages import write_hparams, write_page
from trainer.search.results import write_results
from trainer.search.runs import TrialRun, runs_of
from trainer.search.space import point_of
from trainer.search.trials import Trials, open_study, without_password

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_NUM_EXAMPLES = 20  # of points, of which at least one has to make a configuration
_SAME = "search"  # the study's attribute with what must not change between two starts


def search(settings: SearchConfig, requests: Requests, storage: str | None = None) -> str:
    """Runs the trials that are left, and writes results; a table of them. Whoever shares the storage shares the trials.

    `storage` is the URL that `storage_environment` names. Raises UserError, before anything is started, where the search
    cannot work or is not the one that was begun under this name; Stopped when it was asked to stop and all runs have saved.
    """
    base = _check(settings)
    folder = Path(settings.directory) / settings.name
    study = open_study(settings, folder, settings.storage or storage)
    _require_the_same(settings, base, study)
    shown = settings.model_copy(update={"storage": settings.storage and without_password(settings.storage)})
    write_atomically(folder / "search.yaml", dump_config(shown).encode())
    trials = Trials(settings, study)
    _run(settings, trials, folder, requests)
    write_page(study, settings, folder)
    table = write_results(settings, trials.latest(), folder)
    if requests.stop and not trials.is_done():
        raise Stopped(f"stopped; {folder} has what is done; start it again and it goes on from there")
    return table


def _run(settings: SearchConfig, trials: Trials, folder: Path, requests: Requests) -> None:
    mark = processes.new_mark()
    free = _shares(find_machine(), settings.parallel)
    under_way: list[tuple[Attempt, dict[str, str]]] = []
    try:
        while True:
            while free and not requests.stop and (trial := trials.take()) is not None:
                share = free.pop(0)
                attempt = Attempt(settings, trials, trial, folder, mark)
                under_way.append((attempt, share))
                attempt.begin(share)
            _obey(requests, [attempt for attempt, _ in under_way])
            for attempt, share in list(under_way):
                attempt.look_after()
                if attempt.is_over:
                    under_way.remove((attempt, share))
                    free.append(share)
                    latest = trials.latest()
                    write_hparams(settings, latest, attempt.index, folder)
                    write_results(settings, latest, folder)
            if not under_way and (requests.stop or trials.is_done()):
                return
            time.sleep(_POLL_SECONDS)
    finally:
        for attempt, _ in under_way:
            attempt.abandon()
        processes.kill_marked(mark)


def _obey(requests: Requests, attempts: Sequence[Attempt]) -> None:
    """The first signal asks runs to save and stop, a second one ends them."""
    for _ in requests.take():
        if not requests.stop:
            continue
        if any(attempt.is_stopping for attempt in attempts):
            for attempt in attempts:
                attempt.abandon()
            raise Stopped("stopped at once; start it again and it goes on from the last checkpoints")
        logger.info("waiting for %d runs to save and stop; a second signal kills them", len(attempts))
        for attempt in attempts:
            attempt.stop()


def _shares(machine: Machine, count: int) -> list[dict[str, str]]:
    """What each of so many trials at once has of the machine: an equal part of its GPUs, or of its cores."""
    if count == 1:
        return [{}]
    if machine.gpus:
        if len(machine.gpus) < count:
            raise BackendError(f"parallel: got {count}, expected at most {len(machine.gpus)}, a GPU of this machine each")
        each = len(machine.gpus) // count
        return [{"CUDA_VISIBLE_DEVICES": ",".join(machine.gpus[slot * each : (slot + 1) * each])} for slot in range(count)]
    own_threads = {} if machine.threads_are_set else threads(machine.num_cores // count)
    return [dict(own_threads) for _ in range(count)]


def _check(settings: SearchConfig) -> Config:
    """The configuration that trials share. Raises UserError where no trial could tell its score."""
    path = Path(settings.config)
    base = load_config(path)
    runs: list[TrialRun] = []
    complaint: ConfigError | None = None
    for index in range(min(_NUM_EXAMPLES, settings.num_trials)):
        try:
            # Those of a trial differ in nothing that is looked at here.
            runs.append(next(runs_of(settings, point_of(settings, index), Path(settings.directory) / settings.name)))
        except ConfigError as error:
            complaint = complaint or error
    if complaint is not None and not runs:
        raise complaint
    config = runs[0].config
    computed = [name for name in METRICS[config.task] if name not in METRICS_OF_TEXTS or config.evaluation.generate]
    if settings.metric not in computed:
        raise ConfigError(f"metric: got {settings.metric!r}, expected what {path} evaluates: {', '.join(computed)}")
    if config.evaluation.every is None:
        raise ConfigError(
            f"{path}: evaluation.every: got nothing, expected a number of steps: trials are judged by evaluations"
        )
    if config.data.folds is None and not config.data.validation:
        raise ConfigError(f"{path}: data.validation: got none; expected files to judge trials by, or `folds` in the search")
    for each in {run.config.data.store: run.config for run in runs}.values():
        read_manifest_of(each)
    return base


def _require_the_same(settings: SearchConfig, base: Config, study: optuna.Study) -> None:
    """Raises UserError where the search that was begun under this name is another one: its trials would not compare."""
    kept = settings.model_dump(mode="json", include={"method", "metric", "folds", "repeats", "seed", "parameters"})
    kept["direction"] = study.direction.name.lower()
    kept["config"] = hashlib.sha256(dump_config(base).encode()).hexdigest()
    kept = json.loads(json.dumps(kept))
    begun = study.user_attrs.get(_SAME)
    if begun is None:
        study.set_user_attr(_SAME, kept)
    elif changed := sorted(key for key in kept if kept[key] != begun.get(key)):
        content = " (the content of the file)" if changed == ["config"] else ""
        raise UserError(
            f"search {settings.name}: {', '.join(changed)}{content} changed since it was begun; take another `name`, or put it "
            "back as it was"
        )
