"""What came of the trials: a table for the terminal, `results.csv`, and the best configuration as a file that trains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from trainer.config import SearchConfig
from trainer.config_io import dump_config, load_config
from trainer.files import csv_bytes, write_atomically
from trainer.search.space import overrides_of
from trainer.search.trials import SCORES, SPREAD, direction_of, finished, index_of, reason_of

_NUM_SHOWN = 10
_STATES = {TrialState.COMPLETE: "done", TrialState.PRUNED: "given up", TrialState.FAIL: "failed"}


def write_results(search: SearchConfig, trials: Sequence[FrozenTrial], folder: Path) -> str:
    """Writes `results.csv` and `best.yaml`; the table of the best."""
    write_atomically(folder / "results.csv", csv_bytes(_rows(search, trials)))
    ranked = by_score(search, trials)
    if ranked:
        write_atomically(folder / "best.yaml", _best_config(search, ranked[0]).encode())
    return "\n".join(_table(search, trials, ranked, folder))


def by_score(search: SearchConfig, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that are done, the best first; of two alike the earlier."""
    sign = 1 if direction_of(search) == "minimize" else -1
    return sorted(finished(trials), key=lambda trial: (sign * float(trial.value or 0.0), index_of(trial)))


def _rows(search: SearchConfig, trials: Sequence[FrozenTrial]) -> Iterator[list[Any]]:
    yield ["trial", "state", search.metric, "spread", *search.parameters, "runs", "reason"]
    for trial in trials:
        score = trial.value if trial.state == TrialState.COMPLETE else None
        values = [trial.params.get(name) for name in search.parameters]
        runs = json.dumps(trial.user_attrs.get(SCORES, []))
        state = _STATES.get(trial.state, "under way")
        yield [index_of(trial), state, score, trial.user_attrs.get(SPREAD), *values, runs, reason_of(trial)]


def _best_config(search: SearchConfig, best: FrozenTrial) -> str:
    """On all of the training data, and evaluated on the validation data where there are some."""
    folder = str(Path(search.directory) / search.name)
    overrides = [*overrides_of(best.params), "run.name=best", f"run.directory={json.dumps(folder)}"]
    if search.folds is not None:
        overrides.append("data.folds=null")
    config = load_config(Path(search.config), overrides)
    if config.data.folds is None and not config.data.validation:
        config = load_config(Path(search.config), [*overrides, "evaluation.every=null"])
    return dump_config(config)


def _table(search: SearchConfig, trials: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial], folder: Path) -> Iterator[str]:
    if ranked:
        yield f"{'trial':>5}  {search.metric:>12}  {'spread':>8}  " + "  ".join(search.parameters)
    for trial in ranked[:_NUM_SHOWN]:
        values = (f"{_shown(trial.params[name]):<{len(name)}}" for name in search.parameters if name in trial.params)
        yield f"{index_of(trial):>5}  {trial.value:>12.4f}  {trial.user_attrs[SPREAD]:>8.4f}  {'  '.join(values)}".rstrip()
    counts = {name: sum(trial.state == state for trial in trials) for state, name in _STATES.items()}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    yield f"{len(trials)} of {search.num_trials} trials: {told or 'none is done'}; all in {folder / 'results.csv'}"
    if ranked:
        yield f"the best is trial {index_of(ranked[0])}; it trains from {folder / 'best.yaml'}"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
