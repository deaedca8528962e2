"""How many updates a call makes: nothing that is due is passed, and a stop is heard in time."""

from __future__ import annotations

import pytest

from tests.training import training_config
from trainer.config import Config
from trainer.pace import Pace


def config(**train: float) -> Config:
    from pathlib import Path

    sections = {"steps": 100, "steps_per_loop": 10, **train}
    return training_config(Path(), "pace", train=sections, evaluation={"every": 25}, checkpoint={"every": 40})


def test_the_first_two_calls_make_a_single_update_each() -> None:
    pace = Pace(config())
    assert (pace.next_call(0), pace.expected_seconds(1)) == (1, None)
    pace.took(60.0)  # it compiled
    assert (pace.next_call(1), pace.expected_seconds(1)) == (1, None)
    pace.took(0.1)
    assert pace.next_call(2) == 8
    assert pace.expected_seconds(8) == pytest.approx(0.8)


def test_a_call_ends_where_something_is_due() -> None:
    pace = measured(0.1)
    assert {step: pace.next_call(step) for step in (0, 10, 20, 25, 38, 40, 95, 97)} == {
        0: 10,
        10: 10,
        20: 5,
        25: 5,
        38: 2,
        40: 10,
        95: 5,
        97: 3,
    }


@pytest.mark.parametrize(("seconds", "count"), [(0.5, 10), (2.0, 5), (4.0, 2), (30.0, 1)])
def test_slow_updates_make_short_calls(seconds: float, count: int) -> None:
    assert measured(seconds).next_call(0) == count
    assert measured(seconds).largest_call == count


def measured(seconds: float) -> Pace:
    pace = Pace(config(loop_seconds=10.0))
    for _ in range(2):
        pace.took(seconds)
    return pace
