"""Where a run stands: what a checkpoint holds besides weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Rollback:
    """The run diverged at `from_step` and went back to `to_step`. The positions of the order from `first_sample` on,
    `num_samples` of them, which lie between the two, were stepped over."""

    from_step: int
    to_step: int
    first_sample: int
    num_samples: int
    reason: str

    def __str__(self) -> str:
        last = self.first_sample + self.num_samples - 1
        return f"from step {self.from_step} to {self.to_step}, over samples {self.first_sample} to {last} ({self.reason})"


@dataclass(frozen=True)
class PrivacyRecord:
    """What a private run was begun with, and goes on with: the secret that sampling and noise follow from (128 bits,
    hexadecimal), the noise, and the probability with which an update takes a sample."""

    secret: str = field(repr=False)
    noise_multiplier: float
    sampling_rate: float

    @property
    def secret_bytes(self) -> bytes:
        return bytes.fromhex(self.secret)


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` updates.

    num_samples:      position in the data order: samples consumed or stepped over. It is all the state that the data has
    ledger_hash:      the rolling hash over what was consumed (`trainer.ledger`)
    validation:       the metrics of an evaluation at this step; empty where there was none
    rollbacks:        every time that the run went back, in order
    recent_losses:    the last losses, by which a spike is known, the newest last
    skipped_in_a_row: how many of the last updates were skipped, since loss or gradient were not finite
    privacy:          of a run with `privacy` what it was begun with
    """

    step: int = 0
    num_samples: int = 0
    ledger_hash: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)
    rollbacks: tuple[Rollback, ...] = ()
    recent_losses: tuple[float, ...] = ()
    skipped_in_a_row: int = 0
    privacy: PrivacyRecord | None = None

    @property
    def is_beginning(self) -> bool:
        """Whether nothing was done yet."""
        return replace(self, privacy=None) == Progress()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Progress:
        """Raises TypeError where a field is unknown."""
        rollbacks = tuple(Rollback(**each) for each in content.get("rollbacks", ()))
        recent_losses = tuple(content.get("recent_losses", ()))
        privacy = PrivacyRecord(**content["privacy"]) if content.get("privacy") else None
        return cls(**{**content, "rollbacks": rollbacks, "recent_losses": recent_losses, "privacy": privacy})
