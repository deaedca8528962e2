"""Tells when training no longer leads anywhere: too many skipped updates in a row, or a loss spike."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.config import DivergenceConfig
from trainer.progress import Progress

# Of a normal distribution the standard deviation is so many median absolute deviations (Rousseeuw and Croux 1993).
DEVIATIONS_PER_MAD = 1.4826


@dataclass(frozen=True)
class Divergence:
    """It showed at the update number `step`; what was saved from the update `begun` on is not to be trusted."""

    step: int
    begun: int
    reason: str


class DivergenceGuard:
    """Judges one call of updates after another. What it remembers is in `recent_losses` and `skipped_in_a_row`, which go
    into checkpoints: a resumed run judges as one that was never stopped."""

    def __init__(self, config: DivergenceConfig, progress: Progress) -> None:
        self._config = config
        self._losses = deque(progress.recent_losses, maxlen=config.spike_window)
        self.skipped_in_a_row = progress.skipped_in_a_row

    @property
    def recent_losses(self) -> tuple[float, ...]:
        return tuple(self._losses) if self._config.spike_deviations is not None else ()

    def judge(self, first_step: int, history: Mapping[str, np.ndarray]) -> Divergence | None:
        """The first divergence among the updates after `first_step`, whose `loss`, `gradient_norm` and `is_skipped` are
        [num_steps]. The same on all processes, since these are sums over all."""
        for index, is_skipped in enumerate(history["is_skipped"]):
            step, loss = first_step + index + 1, float(history["loss"][index])
            if is_skipped:
                self.skipped_in_a_row += 1
                if self.skipped_in_a_row > self._config.max_skipped_in_a_row:
                    reason = f"loss {loss:g}, gradient norm {history['gradient_norm'][index]:g}"
                    if self.skipped_in_a_row > 1:
                        reason = f"{self.skipped_in_a_row} skipped updates in a row, the last with {reason}"
                    return Divergence(step, step - self.skipped_in_a_row + 1, reason)
                continue
            self.skipped_in_a_row = 0
            bound = self._bound()
            if loss > bound:
                return Divergence(step, step, f"loss {loss:.4f} is above the bound of {bound:.4f} for a spike")
            if math.isfinite(loss):
                self._losses.append(loss)
        return None

    def _bound(self) -> float:
        """Above it a loss is a spike; infinite until the window is full."""
        if self._config.spike_deviations is None or len(self._losses) < self._config.spike_window:
            return math.inf
        median = statistics.median(self._losses)
        deviation = DEVIATIONS_PER_MAD * statistics.median(abs(loss - median) for loss in self._losses)
        return median + self._config.spike_deviations * deviation
