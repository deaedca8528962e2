"""How many updates to make in one call: as many as configured, fewer where something is due or a stop would be heard late."""

from __future__ import annotations

from trainer.config import Config

# The first call compiles and the second is the first that can be measured: a single update each.
NUM_SINGLE_CALLS = 2


class Pace:
    """Must be told the same on all processes, so that they make the same calls."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._num_calls = 0
        self.step_seconds: float | None = None

    @property
    def largest_call(self) -> int:
        """Updates, or evaluation batches, that fit into a call."""
        if self.step_seconds is None:
            return 1
        train = self._config.train
        return max(1, min(train.steps_per_loop, int(train.loop_seconds / max(self.step_seconds, 1e-6))))

    def next_call(self, step: int) -> int:
        """How many updates to make after `step`, before something other than an update is due."""
        config = self._config
        intervals = [config.train.steps_per_loop, config.checkpoint.every, config.evaluation.every or config.train.steps]
        return min(self.largest_call, config.train.steps - step, *(every - step % every for every in intervals))

    def expected_seconds(self, num_steps: int) -> float | None:
        """Of a call of so many updates; None before one was measured."""
        return None if self.step_seconds is None else num_steps * self.step_seconds

    def took(self, step_seconds: float) -> None:
        """Takes what an update of the last call took, as the chief has measured it."""
        self._num_calls += 1
        if self._num_calls >= NUM_SINGLE_CALLS:
            self.step_seconds = step_seconds
