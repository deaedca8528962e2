"""Puts saved arrays into variables, and names every one that does not fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainer.errors import CheckpointError


def assign_weights(variables: Mapping[str, tf.Variable], saved: Mapping[str, np.ndarray], origin: str) -> None:
    """Raises CheckpointError, with nothing assigned, where names or shapes differ from those of `origin`."""
    refuse_misfits({name: tuple(variable.shape) for name, variable in variables.items()}, saved, origin)
    for name, variable in variables.items():
        variable.assign(saved[name])


def refuse_misfits(shapes: Mapping[str, tuple[int, ...]], saved: Mapping[str, np.ndarray], origin: str) -> None:
    """Raises CheckpointError where names or shapes differ from those of `origin`."""
    problems = [f"{name} is missing" for name in shapes if name not in saved]
    problems += [f"{name} is not part of the model" for name in saved if name not in shapes]
    problems += [
        f"{name} is {tuple(saved[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in saved and tuple(saved[name].shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{origin} is of another model: {shown}")
