"""The file of a search: what is refused, with its line and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config_io import load_search
from trainer.errors import ConfigError

SEARCH = """\
name: grid
config: configs/sentiment.yaml
method: grid
metric: accuracy
folds: 3
parameters:
  optimizer.learning_rate: {values: [1e-4, 1e-3]}
  model.width: {values: [64, 128, 256]}
"""


def complaints(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "search.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_search(path)
    return [complaint.removeprefix(f"{path}:") for complaint in raised.value.complaints]


def test_a_grid_has_as_many_trials_as_combinations(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(SEARCH)
    search = load_search(path)
    assert (search.num_trials, search.num_runs) == (6, 3)
    assert load_search(path, ["trials=4", "repeats=2"]).num_runs == 6


WIDTH = "8: parameters.model.width"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("folds: 3", "fold: 3", "5: fold: unknown key; did you mean folds?"),
        ("values: [64, 128, 256]", "value: [64]", f"{WIDTH}.value: unknown key; did you mean values?"),
        ("values: [64, 128, 256]", "low: 3", f"{WIDTH}.high: got nothing, expected a number beside `low`"),
        ("values: [64, 128, 256]", "log: true", f"{WIDTH}.values: got nothing, expected a list, or `low` and `high`"),
        ("values: [64, 128, 256]", "low: 3, high: 2", f"{WIDTH}.high: got 2, expected more than `low`, which is 3"),
        ("values: [64, 128, 256]", "low: 0, high: 2, log: true", f"{WIDTH}.low: got 0, expected more than 0 with `log`"),
        ("values: [64, 128, 256]", "values: [64, 64]", f"{WIDTH}.values: got a value twice, expected values that differ"),
        (
            "values: [64, 128, 256]",
            "values: [64], low: 1",
            f"{WIDTH}.values: got a list beside a range, expected one of the two",
        ),
        ("method: grid", "method: gird", "3: method: got 'gird', expected one of grid, random, bayesian; did you mean grid?"),
        ("method: grid", "method: random", "1: trials: got nothing, expected a number: of random there is no end"),
        ("folds: 3", "trials: 7", "5: trials: got 7, expected at most the 6 combinations of the lists"),
        (
            "folds: 3",
            "pruning: {kind: mediam}",
            "5: pruning.kind: got 'mediam', expected one of successive_halving, median; did you mean median?",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, before: str, after: str, expected: str) -> None:
    assert complaints(tmp_path, SEARCH.replace(before, after)) == [expected]


def test_a_grid_of_ranges_alone_is_none(tmp_path: Path) -> None:
    text = SEARCH.replace("values: [1e-4, 1e-3]", "low: 1e-4, high: 1e-3").replace(
        "values: [64, 128, 256]", "low: 64, high: 256"
    )
    assert complaints(tmp_path, text) == [
        "6: parameters: got ranges alone, expected at least one list of `values` in a grid, or another method"
    ]
