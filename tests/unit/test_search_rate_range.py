"""What a learning-rate range test suggests, on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.errors import UserError
from trainer.search.rate_range import suggest

RATES = np.geomspace(1e-6, 1.0, 120)


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    # A fall around 1e-3, in the logarithm of the rate; beyond 1e-1 it runs away.
    losses = 4.0 - 2.0 / (1.0 + np.exp(-4.0 * np.log10(RATES / 1e-3))) + 40.0 * np.maximum(0.0, np.log10(RATES / 1e-1))
    found = suggest(RATES.tolist(), losses.tolist())
    # Smoothing lags behind by some ten steps of 120, half a decade.
    assert 1e-3 <= found.rate <= 6e-3
    assert len(found.rates) == len(found.losses) < len(RATES)


def test_what_follows_a_loss_that_is_no_number_is_left_out() -> None:
    losses = np.linspace(4.0, 2.0, len(RATES))
    losses[60:] = np.nan
    assert len(suggest(RATES.tolist(), losses.tolist()).losses) == 60


def test_a_loss_that_runs_away_at_once_tells_nothing() -> None:
    losses = np.full(len(RATES), 1e9)
    losses[:4] = 1.0
    with pytest.raises(UserError, match="--lowest: the loss runs away after 4 steps"):
        suggest(RATES.tolist(), losses.tolist())
