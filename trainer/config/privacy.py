"""The section `privacy`: training with differential privacy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section, complaint


class PrivacyConfig(Section):
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133): an update takes each sample with the same probability, so that it has
    `train.global_batch_size` of them on average; the gradient of each is clipped to `clip_norm`; to their sum Gaussian noise is
    added, `noise_multiplier` times `clip_norm` in each number. What the weights then tell of any one sample is bounded by
    `epsilon` and `delta`, by Google's `dp-accounting` (`accountant`: Rényi divergences, or privacy loss distributions, which
    allow for a little less noise and take longer).

    With an `epsilon` training stops before more of it is spent; without `noise_multiplier` the noise is the least with which
    `train.steps` updates fit into it. Sampling and noise follow from a random number that is drawn when the run begins and kept
    in its checkpoints alone; a `seed` in its place makes two runs equal, and protects from nobody who knows it.
    """

    epsilon: Annotated[float, Field(gt=0.0)] | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    noise_multiplier: Annotated[float, Field(ge=0.0)] | None = None
    accountant: Literal["rdp", "pld"] = "rdp"
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    @model_validator(mode="after")
    def _there_is_a_bound(self) -> PrivacyConfig:
        if self.epsilon is None and self.noise_multiplier is None:
            raise complaint("epsilon", "null", "a budget, or a `noise_multiplier` without one")
        if self.epsilon is not None and self.noise_multiplier == 0.0:
            raise complaint("noise_multiplier", "0", "more: without noise no `epsilon` holds")
        return self
