"""The learning-rate range test: one short run whose rate rises from step to step, and what its losses suggest.

Smith 2017, arXiv:1506.01186, section 3.3; with the exponential rise and the smoothing of Gugger 2018
(https://sgugger.github.io/how-do-you-find-a-good-learning-rate.html). The suggestion is the rate at which the loss falls
fastest over the logarithm of the rate.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects

from launch import local
from launch.plan import Process
from launch.requests import Requests
from trainer.config_io import dump_config, load_config
from trainer.errors import Diverged, Stopped, UserError
from trainer.files import csv_bytes, make_folder, write_atomically
from trainer.run_directory import RunDirectory, training_lines

_SMOOTHING = 0.9  # of the mean before is kept at each step
_DIVERGED = 4.0  # times the least loss so far, and what follows tells nothing
_LEAST_STEPS = 10


@dataclass(frozen=True)
class RateRange:
    """The rates that are tried: `num_steps` from `lowest` to `highest`, each the same factor above the one before."""

    lowest: float = 1e-7
    highest: float = 1.0
    num_steps: int = 100


@dataclass(frozen=True)
class Suggestion:
    """`rates` and smoothed `losses` of the steps before the loss ran away, and the rate that they suggest."""

    rates: Sequence[float]
    losses: Sequence[float]
    rate: float


def find_rate(path: Path, overrides: Sequence[str], tried: RateRange, requests: Requests) -> str:
    """Runs the test; what it suggests, in a line. Raises UserError where it cannot, Stopped where it was asked to stop."""
    given = load_config(path, overrides)
    rising = [
        f"run.name={given.run.name}-learning-rate-range",
        *("optimizer.schedule=exponential_rise", "optimizer.warmup_steps=0", "optimizer.decay_steps=null"),
        *(f"optimizer.minimum_learning_rate={tried.lowest}", f"optimizer.learning_rate={tried.highest}"),
        *(f"train.steps={tried.num_steps}", "train.average_decay=null", "logging.every=1", "evaluation.every=null"),
        *(f"checkpoint.every={tried.num_steps}", "divergence.max_rollbacks=0", "divergence.spike_deviations=null"),
    ]
    config = load_config(path, [*overrides, *rising])
    run = RunDirectory.of(config)
    make_folder(run.path)
    config_path = run.path.with_name(f"{run.path.name}.yaml")
    write_atomically(config_path, dump_config(config).encode())
    process = Process("0", (sys.executable, "-m", "trainer", "train", str(config_path)))
    exit_code = local.run([process], requests, in_terminal=True)
    if exit_code == Stopped.exit_code:
        raise Stopped(f"stopped; start it again and it goes on from the last checkpoint in {run.path}")
    if exit_code not in (0, Diverged.exit_code):
        raise UserError(f"{run.path}: the run ended with exit code {exit_code}, as it said")
    lines = list(training_lines(run.metrics))
    suggestion = suggest([float(line["learning_rate"]) for line in lines], [_number(line["loss"]) for line in lines])
    _write(suggestion, run.path)
    return (
        f"optimizer.learning_rate: {suggestion.rate:.2g} is suggested, where the loss falls fastest; it was least at "
        f"{suggestion.rates[int(np.argmin(suggestion.losses))]:.2g}; {run.path / 'learning-rate-range.html'} has the plot"
    )


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Of a run's steps. Raises UserError where they are too few before the loss runs away."""
    smooth: list[float] = []
    mean = 0.0
    for number, loss in enumerate(losses, start=1):
        mean = _SMOOTHING * mean + (1.0 - _SMOOTHING) * loss
        corrected = mean / (1.0 - _SMOOTHING**number)
        if not math.isfinite(corrected) or (smooth and corrected > _DIVERGED * min(smooth)):
            break
        smooth.append(corrected)
    if len(smooth) < _LEAST_STEPS:
        raise UserError(
            f"--lowest: the loss runs away after {len(smooth)} steps, at a rate of {rates[len(smooth) - 1]:.2g}; take a lower "
            "one"
        )
    least = max(int(np.argmin(smooth)), 1)
    slopes = np.gradient(np.array(smooth[: least + 1]), np.log(np.array(rates[: least + 1])))
    return Suggestion(rates[: len(smooth)], smooth, rates[int(np.argmin(slopes))])


def _number(loss: float | None) -> float:
    return math.nan if loss is None else loss


def _write(suggestion: Suggestion, folder: Path) -> None:
    rows = [("learning_rate", "smoothed_loss"), *zip(suggestion.rates, suggestion.losses, strict=True)]
    write_atomically(folder / "learning-rate-range.csv", csv_bytes(rows))
    curve = plotly.graph_objects.Scatter(x=list(suggestion.rates), y=list(suggestion.losses), mode="lines")
    plot = plotly.graph_objects.Figure(curve)
    plot.update_layout(title="Learning-rate range", xaxis_title="learning rate", yaxis_title="loss, smoothed")
    plot.update_xaxes(type="log")
    plot.add_vline(x=suggestion.rate, annotation_text=f"suggested: {suggestion.rate:.2g}")
    write_atomically(folder / "learning-rate-range.html", plot.to_html().encode())
