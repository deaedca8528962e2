"""The points of a search: which values its settings have in which trial, and how overrides write them.

The point of a trial in a grid or a random search is a function of its number and the search's seed: it can be computed again
anywhere. Only a Bayesian search chooses by what came of the trials before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from trainer.config import ParameterConfig, Scalar, SearchConfig
from trainer.data.draws import generator_of, uniforms

Point = Mapping[str, Scalar]


def point_of(search: SearchConfig, index: int) -> dict[str, Scalar]:
    """The values of the `index`-th trial of a grid or a random search."""
    point, rest = {}, index % search.num_combinations
    # Of a grid the last list changes fastest, as the last digit of a number does.
    for name, parameter in reversed(search.parameters.items()):
        if search.method == "grid" and parameter.values is not None:
            rest, place = divmod(rest, len(parameter.values))
            point[name] = parameter.values[place]
    for stream, (name, parameter) in enumerate(search.parameters.items()):
        if name not in point:
            point[name] = _drawn(parameter, float(uniforms(generator_of(search.seed, stream, index), 1)[0]))
    return {name: point[name] for name in search.parameters}


def distributions_of(search: SearchConfig) -> dict[str, BaseDistribution]:
    """What Optuna is told of each setting."""
    return {name: _distribution(parameter) for name, parameter in search.parameters.items()}


def overrides_of(point: Point) -> list[str]:
    """`section.key=value` for each value."""
    return [f"{name}={json.dumps(value)}" for name, value in point.items()]


def shown(point: Point) -> str:
    """A point for people to read."""
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items())


def _drawn(parameter: ParameterConfig, uniform: float) -> Scalar:
    if parameter.values is not None:
        return parameter.values[int(uniform * len(parameter.values))]
    assert parameter.low is not None and parameter.high is not None
    low, high = float(parameter.low), float(parameter.high)
    if parameter.is_whole:
        # Each whole number has the stretch of length 1 around it.
        low, high = low - 0.5, high + 0.5
    value = math.exp(_between(math.log(low), math.log(high), uniform)) if parameter.log else _between(low, high, uniform)
    value = min(max(value, parameter.low), parameter.high)
    return round(value) if parameter.is_whole else value


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _distribution(parameter: ParameterConfig) -> BaseDistribution:
    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    assert parameter.low is not None and parameter.high is not None
    if parameter.is_whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)
