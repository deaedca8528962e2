"""The runs of a trial: their configurations, in files that `drumline train` takes as they stand, and what they reached."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config, SearchConfig
from trainer.config_io import dump_config, load_config
from trainer.files import json_bytes, make_folder, write_atomically
from trainer.run_directory import RunDirectory, validation_lines
from trainer.search.space import Point, overrides_of

_SCORES = "scores.json"


@dataclass(frozen=True)
class TrialRun:
    """One run of a trial: `config_path` is its configuration's file, `output` what it writes on the terminal."""

    name: str
    config: Config
    config_path: Path
    output: Path

    @property
    def num_steps(self) -> int:
        return self.config.train.steps


def runs_of(search: SearchConfig, point: Point, folder: Path) -> Iterator[TrialRun]:
    """The runs of the trial that lives in `folder`. Raises ConfigError where the point makes no configuration."""
    for name, overrides in _variations(search):
        place = [f"run.directory={json.dumps(str(folder))}", f"run.name={name}"]
        config = load_config(Path(search.config), [*overrides_of(point), *overrides, *place])
        yield TrialRun(name, config, folder / f"{name}.yaml", folder / f"{name}.log")


def write_configs(runs: Sequence[TrialRun]) -> None:
    for run in runs:
        make_folder(run.config_path.parent)
        write_atomically(run.config_path, dump_config(run.config).encode())


def reached(run: TrialRun, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each evaluation so far; where it was not finite, NaN."""
    metrics = RunDirectory.of(run.config).metrics
    lines = validation_lines(metrics) if metrics.exists() else ()
    return [(int(line["step"]), math.nan if line.get(metric) is None else float(line[metric])) for line in lines]


def read_scores(folder: Path) -> dict[str, float]:
    """What the finished runs of a trial reached, by name."""
    path = folder / _SCORES
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_scores(folder: Path, scores: dict[str, float]) -> None:
    write_atomically(folder / _SCORES, json_bytes(scores))


def mean_and_spread(scores: Sequence[float]) -> tuple[float, float]:
    """The mean, and the standard deviation of the runs (of a sample; 0 of a single run)."""
    return statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0


def last_words(run: TrialRun) -> str:
    """Why a run failed, by the last line of what it wrote."""
    text = run.output.read_text(errors="replace") if run.output.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _variations(search: SearchConfig) -> Iterator[tuple[str, list[str]]]:
    """The name of each run of a trial, and what is its own. Repetitions differ in more than their folds: in the run's seed."""
    for repeat in range(search.repeats):
        seed = [f"run.seed={_seed(search, repeat)}"] if search.repeats > 1 else []
        of_repeat = [f"repeat-{repeat}"] if search.repeats > 1 else []
        for fold in range(search.folds or 1):
            folds: dict[str, Any] = {"number": search.folds, "held_out": fold, "seed": _seed(search, repeat)}
            of_fold = [f"fold-{fold}"] if search.folds else []
            overrides = [*seed, f"data.folds={json.dumps(folds)}"] if search.folds else seed
            yield "-".join([*of_repeat, *of_fold]) or "run", overrides


def _seed(search: SearchConfig, repeat: int) -> int:
    return search.seed + repeat
