"""The points of grids and random searches: functions of a trial's number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer.config import SearchConfig
from trainer.search.space import overrides_of, point_of

NUM_DRAWS = 4_000


def search(method: str, parameters: dict[str, dict[str, Any]], **changes: Any) -> SearchConfig:
    values = {"name": "search", "config": "none.yaml", "method": method, "trials": 6, "parameters": parameters}
    return SearchConfig.model_validate(values | changes)


def test_a_grid_goes_through_all_combinations_the_last_list_fastest() -> None:
    grid = search("grid", {"a": {"values": [1, 2]}, "b": {"values": ["x", "y", "z"]}})
    points = [point_of(grid, index) for index in range(6)]
    assert [tuple(point.values()) for point in points] == [(a, b) for a in (1, 2) for b in "xyz"]
    assert list(points[0]) == ["a", "b"]


def test_ranges_of_a_grid_are_drawn_anew_for_each_of_its_points() -> None:
    grid = search("grid", {"a": {"values": [1, 2]}, "b": {"low": 0.0, "high": 1.0}})
    points = [point_of(grid, index) for index in range(6)]
    assert [point["a"] for point in points] == [1, 2, 1, 2, 1, 2]
    assert len({point["b"] for point in points}) == 6


def test_a_point_depends_on_its_number_and_the_seed_alone() -> None:
    parameters = {"a": {"low": 0.0, "high": 1.0}, "b": {"values": [1, 2, 3]}}
    first, longer = search("random", parameters), search("random", parameters, trials=60)
    assert [point_of(first, index) for index in range(6)] == [point_of(longer, index) for index in range(6)]
    assert point_of(first, 0) != point_of(search("random", parameters, seed=2), 0)


def test_draws_fill_their_ranges_evenly() -> None:
    parameters = {
        "even": {"low": -1.0, "high": 3.0},
        "log": {"low": 1e-4, "high": 1e-1, "log": True},
        "whole": {"low": 1, "high": 4},
        "log_whole": {"low": 1, "high": 1000, "log": True},
        "list": {"values": ["x", "y"]},
    }
    points = [point_of(search("random", parameters), index) for index in range(NUM_DRAWS)]
    even = np.array([point["even"] for point in points], float)
    assert even.min() >= -1.0 and even.max() <= 3.0 and even.mean() == pytest.approx(1.0, abs=0.1)
    exponents = np.log10(np.array([point["log"] for point in points], float))
    assert exponents.min() >= -4.0 and exponents.max() <= -1.0 and exponents.mean() == pytest.approx(-2.5, abs=0.1)
    whole = [point["whole"] for point in points]
    assert {type(number) for number in whole} == {int}
    assert np.bincount(np.array(whole, int))[1:] / NUM_DRAWS == pytest.approx([0.25] * 4, abs=0.03)
    assert {1, 1000} >= {min(each["log_whole"] for each in points)}
    assert max(each["log_whole"] for each in points) <= 1000
    assert np.mean([point["list"] == "x" for point in points]) == pytest.approx(0.5, abs=0.03)
    # Settings are drawn apart from each other.
    assert abs(np.corrcoef(even, exponents)[0, 1]) < 0.05


def test_overrides_keep_the_types_of_values() -> None:
    assert overrides_of({"a": 1, "b": 1e-5, "c": "1", "d": None, "e": True}) == ["a=1", "b=1e-05", 'c="1"', "d=null", "e=true"]
