"""The schema of a search over hyper-parameters, which has a YAML file of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.run import RUN_NAME
from trainer.config.section import Count, Section, complaint

Scalar = bool | int | float | str | None


class ParameterConfig(Section):
    """What one setting may be: one of `values`, or a number from `low` to `high`, both included.

    A range between two whole numbers has whole numbers. With `log` as many are drawn between 1 and 10 as between 10 and 100.
    """

    values: Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False)] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False

    @model_validator(mode="after")
    def _values_or_a_range(self) -> ParameterConfig:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log:
                raise complaint("values", "a list beside a range", "one of the two")
            if len({(type(each), each) for each in self.values}) < len(self.values):
                raise complaint("values", "a value twice", "values that differ")
            return self
        if self.low is None and self.high is None:
            raise complaint("values", "nothing", "a list, or `low` and `high`")
        if self.low is None or self.high is None:
            missing, given = ("low", "high") if self.low is None else ("high", "low")
            raise complaint(missing, "nothing", f"a number beside `{given}`")
        if self.low >= self.high:
            raise complaint("high", f"{self.high}", f"more than `low`, which is {self.low}")
        if self.log and self.low <= 0:
            raise complaint("low", f"{self.low}", "more than 0 with `log`")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


class PruningConfig(Section):
    """Which trials are given up early, by what they have reached at the same step (Optuna's pruners).

    `successive_halving` lets one of `reduction_factor` go on at each rung; the first rung is `least_steps`, each next one
    `reduction_factor` times as many (Li et al. 2018, arXiv:1810.05934). `median` gives up what is worse than the median of the
    trials before it, of which there must be `startup_trials`. Nothing is given up before `least_steps`.
    """

    kind: Literal["successive_halving", "median"]
    least_steps: Count = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    startup_trials: Annotated[int, Field(ge=0)] = 5


class SearchConfig(Section):
    """The whole of one search: everything it writes goes to `directory/name`.

    config:      the YAML file that all trials share
    method:      `grid` tries each combination of the lists, with ranges drawn anew for each; `random` draws everything;
                 `bayesian` learns from the trials before (Optuna's TPE; Bergstra et al. 2011)
    metric:      what the last evaluation of a run computes
    direction:   what is better (default: less of a loss or a perplexity, more of all else)
    folds:       each trial is so many runs, each evaluated on the fold that it holds out (default: one run, evaluated on the
                 validation data)
    repeats:     all of that so often, with other seeds
    trials:      in all (default: the combinations of a grid, once)
    parallel:    trials at once, of this process; cores and GPUs are divided between them
    workers:     replicas of each run, as of `drumline launch local`
    storage:     where trials are kept: an SQLAlchemy URL such as postgresql+pg8000://host/name, or journal:PATH for a file on
                 a disk that all machines share (default: an SQLite file in the search's folder)
    storage_environment: the name of an environment variable that has that URL, where it holds a password
    seed:        of what is drawn
    """

    name: Annotated[str, Field(pattern=RUN_NAME)]
    directory: Annotated[str, Field(min_length=1)] = "runs"
    config: Annotated[str, Field(min_length=1)]
    method: Literal["grid", "random", "bayesian"]
    metric: str = "loss"
    direction: Literal["minimize", "maximize"] | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    repeats: Count = 1
    trials: Count | None = None
    parallel: Count = 1
    workers: Count = 1
    pruning: PruningConfig | None = None
    storage: Annotated[str, Field(min_length=1)] | None = None
    storage_environment: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    parameters: Annotated[dict[str, ParameterConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _grid_has_lists(self) -> SearchConfig:
        has_lists = any(parameter.values is not None for parameter in self.parameters.values())
        if self.method == "grid" and not has_lists:
            raise complaint("parameters", "ranges alone", "at least one list of `values` in a grid, or another method")
        if self.method != "grid" and self.trials is None:
            raise complaint("trials", "nothing", f"a number: of {self.method} there is no end")
        ranges = [parameter for parameter in self.parameters.values() if parameter.values is None]
        if self.method == "grid" and self.trials is not None and not ranges and self.trials > self.num_combinations:
            raise complaint("trials", f"{self.trials}", f"at most the {self.num_combinations} combinations of the lists")
        return self

    @model_validator(mode="after")
    def _one_storage(self) -> SearchConfig:
        if self.storage is not None and self.storage_environment is not None:
            raise complaint("storage_environment", self.storage_environment, "nothing beside `storage`")
        return self

    @property
    def num_combinations(self) -> int:
        """Of the lists."""
        count = 1
        for parameter in self.parameters.values():
            count *= 1 if parameter.values is None else len(parameter.values)
        return count

    @property
    def num_trials(self) -> int:
        return self.trials or self.num_combinations

    @property
    def num_runs(self) -> int:
        """Of a trial."""
        return (self.folds or 1) * self.repeats
