"""Random numbers as a function of the run's seed, what they are for, and a draw: no state, so that resuming is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

# What numbers are for. The orders of the data sets (`trainer.data.order`) take the small ones.
MASKING_STREAM = 2**31
AUGMENTATION_STREAM = 2**31 + 1
MIXUP_STREAM = 2**31 + 2


def generator_of(seed: int, stream: int, draw: int) -> np.random.Philox:
    """A counter-based generator (Salmon et al. 2011); its raw numbers are fixed for all versions of NumPy (NEP 19)."""
    return np.random.Philox(key=np.array([seed << 32 | stream, draw], np.uint64))


def uniforms(generator: np.random.Philox, count: int) -> Float64Array:
    """The next `count` numbers of [0, 1)."""
    raw: Any = generator.random_raw(count)
    numbers: Float64Array = (raw >> np.uint64(11)) * 2.0**-53
    return numbers
