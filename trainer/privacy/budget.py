"""How much privacy training spends, by Google's `dp-accounting`, and how much noise a budget takes. No TensorFlow.

Neighbours differ by one sample that is there or not. An update is a Gaussian mechanism on a Poisson sample; those that were
rolled back count, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.config import Config, PrivacyConfig
from trainer.errors import BackendError, CheckpointError, UserError

if TYPE_CHECKING:
    from trainer.progress import PrivacyRecord

# How likely it may be that an update's sample does not fit into its rows, over `delta`. A whole run of a million updates then
# adds at most (1 + exp(epsilon)) * 1e-9 * delta to delta (Dwork and Roth 2014, section 3.5: a mechanism that fails so rarely).
_OVERFLOW = 1e-15
_TOLERANCE = 1e-3  # of the noise multiplier


@dataclass(frozen=True)
class Budget:
    """What a run spends. `sampling_rate` is the probability with which an update takes a sample."""

    config: PrivacyConfig
    sampling_rate: float
    noise_multiplier: float

    def epsilon(self, num_updates: int) -> float:
        """What so many updates spend; without noise infinitely much."""
        return _epsilon(self.config, self.sampling_rate, self.noise_multiplier, num_updates)

    def most_updates(self, num_steps: int) -> int:
        """How many of so many updates fit into the budget."""
        budget = self.config.epsilon
        if budget is None or self.epsilon(num_steps) <= budget:
            return num_steps
        fitting, beyond = 0, num_steps
        while beyond - fitting > 1:
            middle = (fitting + beyond) // 2
            fitting, beyond = (middle, beyond) if self.epsilon(middle) <= budget else (fitting, middle)
        return fitting


def plan_budget(config: Config, num_samples: int, record: PrivacyRecord | None) -> Budget:
    """The budget of a run over so many samples; `record` is what it was begun with, where it was.

    Raises BackendError where `dp-accounting` is not installed, UserError where there are fewer samples than an update takes or
    no noise is enough, and CheckpointError where the run is no longer what its budget was reckoned for.
    """
    privacy = config.privacy
    assert privacy is not None
    _import_accounting()
    rate = config.train.global_batch_size / num_samples
    if rate > 1.0:
        raise UserError(
            f"train.global_batch_size: got {config.train.global_batch_size}, expected at most as many as there are training "
            f"samples, which are {num_samples}"
        )
    if record is not None:
        if not math.isclose(record.sampling_rate, rate):
            raise CheckpointError(
                f"privacy: the run has taken each sample with probability {record.sampling_rate:g}, and would now with "
                f"{rate:g}: its budget was for other data or another train.global_batch_size; take another run.name"
            )
        return Budget(privacy, rate, record.noise_multiplier)
    given = privacy.noise_multiplier
    return Budget(privacy, rate, _least_noise(privacy, rate, config.train.steps) if given is None else given)


def sample_capacity(privacy: PrivacyConfig, sampling_rate: float, num_samples: int) -> int:
    """The rows that an update's sample fits into, but for a probability that counts for nothing (see `_OVERFLOW`)."""
    from scipy.stats import binom

    too_few, enough = 0, num_samples
    while enough - too_few > 1:  # SciPy's own inverse, `isf`, is wrong for so small a probability
        middle = (too_few + enough) // 2
        fits = binom.sf(middle, num_samples, sampling_rate) <= _OVERFLOW * privacy.delta
        too_few, enough = (too_few, middle) if fits else (middle, enough)
    return enough


def _least_noise(privacy: PrivacyConfig, rate: float, num_updates: int) -> float:
    """Rounded up to a thousandth."""
    budget = privacy.epsilon
    assert budget is not None
    lowest, highest = 0.0, 1.0
    while _epsilon(privacy, rate, highest, num_updates) > budget:
        lowest, highest = highest, 2 * highest
        if highest > 1e4:
            raise UserError(f"privacy.epsilon: got {budget:g}, expected more: no noise keeps {num_updates} updates within it")
    while highest - lowest > _TOLERANCE:
        middle = (lowest + highest) / 2
        lowest, highest = (lowest, middle) if _epsilon(privacy, rate, middle, num_updates) <= budget else (middle, highest)
    return math.ceil(highest / _TOLERANCE) * _TOLERANCE


def _epsilon(privacy: PrivacyConfig, rate: float, noise_multiplier: float, num_updates: int) -> float:
    if num_updates == 0:
        return 0.0
    if noise_multiplier == 0.0:
        return math.inf
    accounting = _import_accounting()
    accountant = accounting.pld.PLDAccountant() if privacy.accountant == "pld" else accounting.rdp.RdpAccountant()
    update = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise_multiplier))
    return float(accountant.compose(update, num_updates).get_epsilon(privacy.delta))


def _import_accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise BackendError(
            f"privacy: the package dp-accounting is missing ({error}); run: pip install 'drumline[privacy]'"
        ) from None
    return dp_accounting
