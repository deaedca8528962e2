"""When a run is told that it leads nowhere: updates skipped in a row, and robust bounds for spikes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.config import DivergenceConfig
from trainer.divergence import DivergenceGuard
from trainer.progress import Progress

NAN = math.nan


def guard(progress: Progress = Progress(), **changes: float | int | None) -> DivergenceGuard:  # noqa: B008
    return DivergenceGuard(DivergenceConfig.model_validate(changes), progress)


def history(*losses: float) -> dict[str, np.ndarray]:
    values = np.array(losses, np.float32)
    return {"loss": values, "gradient_norm": values * 2, "is_skipped": ~np.isfinite(values)}


def test_skipped_updates_are_endured_up_to_the_configured_number_in_a_row() -> None:
    enduring = guard(max_skipped_in_a_row=2)
    assert enduring.judge(0, history(3.0, NAN, NAN, 3.0, NAN)) is None
    assert enduring.skipped_in_a_row == 1
    divergence = enduring.judge(5, history(NAN, NAN, 3.0))
    assert divergence is not None
    assert (divergence.step, divergence.begun) == (7, 5)
    assert "3 skipped updates in a row" in divergence.reason and "nan" in divergence.reason


def test_none_is_endured_where_none_may_be() -> None:
    divergence = guard(max_skipped_in_a_row=0).judge(10, history(3.0, math.inf))
    assert divergence is not None and (divergence.step, divergence.begun) == (12, 12)
    assert divergence.reason == "loss inf, gradient norm inf"


@pytest.mark.parametrize("loss", [3.2, 1.0, -50.0])
def test_a_loss_within_the_bound_or_below_is_no_spike(loss: float) -> None:
    window = history(*(3.0 + 0.1 * math.sin(number) for number in range(8)))
    watching = guard(spike_deviations=4.0, spike_window=8)
    assert watching.judge(0, window) is None
    assert watching.judge(8, history(loss)) is None


def test_a_loss_above_the_robust_bound_is_a_spike() -> None:
    losses = [3.0, 3.1, 2.9, 3.05, 2.95, 3.1, 2.9, 3.0]
    watching = guard(spike_deviations=4.0, spike_window=8)
    assert watching.judge(0, history(*losses)) is None
    median = float(np.median(losses))
    bound = median + 4.0 * 1.4826 * float(np.median(np.abs(np.array(losses) - median)))
    assert watching.judge(8, history(bound - 0.01)) is None
    divergence = watching.judge(9, history(2.9, bound + 0.1))
    assert divergence is not None and (divergence.step, divergence.begun) == (11, 11)
    assert "spike" in divergence.reason


def test_without_a_full_window_or_a_bound_nothing_is_a_spike() -> None:
    assert guard(spike_deviations=1.0, spike_window=8).judge(0, history(*[3.0, 3.1] * 3, 1e6)) is None
    assert guard().judge(0, history(*[3.0, 3.1] * 100, 1e6)) is None


def test_a_resumed_guard_judges_as_one_that_was_never_stopped() -> None:
    losses = [3.0, 3.1, 2.9, 3.05, 2.95, 3.1, 2.9, 3.0]
    straight = guard(spike_deviations=4.0, spike_window=8)
    straight.judge(0, history(*losses, NAN))
    progress = Progress(recent_losses=straight.recent_losses, skipped_in_a_row=straight.skipped_in_a_row)
    resumed = guard(Progress.from_json(progress.to_json()), spike_deviations=4.0, spike_window=8)
    for each in (history(NAN, NAN, 9.0), history(NAN, NAN, NAN)):
        assert guard(progress, spike_deviations=4.0, spike_window=8).judge(9, each) == resumed.judge(9, each)
        resumed = guard(progress, spike_deviations=4.0, spike_window=8)
