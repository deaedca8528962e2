"""What private training spends: by the accountant, by published figures, and by arithmetic of our own. No TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import example_config
from trainer.config import Config, PrivacyConfig
from trainer.errors import CheckpointError, ConfigError, UserError
from trainer.privacy.budget import Budget, plan_budget, sample_capacity
from trainer.progress import PrivacyRecord

dp_accounting = pytest.importorskip("dp_accounting")

# Of MNIST's 60,000 images, batches of 256, delta 1e-5: noise, epochs and epsilon in TensorFlow Privacy's table
# (github.com/tensorflow/privacy, tutorials/README.md), by the conversion of Mironov 2017 (arXiv:1702.07476, proposition 3).
PUBLISHED = [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)]
RATE = 256 / 60_000


def num_updates(epochs: int) -> int:
    return int(epochs * 60_000 / 256)


def budget(noise: float, accountant: str = "rdp", epsilon: float | None = None) -> Budget:
    config = PrivacyConfig(delta=1e-5, noise_multiplier=noise, accountant=accountant, epsilon=epsilon)  # type: ignore[arg-type]
    return Budget(config, RATE, noise)


def renyi_divergence(noise: float, order: float) -> float:
    """Of the sampled Gaussian mechanism (Mironov, Talwar and Zhang 2019, arXiv:1908.10530, theorem 4), by quadrature:
    log E[(1 - q + q exp((2 z - 1) / (2 s^2)))^a] / (a - 1) of z ~ N(0, s)."""
    z = np.linspace(-12 * noise, order + 12 * noise, 100_001)
    logarithms = order * np.logaddexp(math.log1p(-RATE), math.log(RATE) + (2 * z - 1) / (2 * noise**2)) - z**2 / (2 * noise**2)
    largest = logarithms.max()
    integral = np.exp(logarithms - largest).sum() * (z[1] - z[0]) / math.sqrt(2 * math.pi * noise**2)
    return float((largest + math.log(integral)) / (order - 1))


@pytest.mark.parametrize(("noise", "epochs", "published"), PUBLISHED)
def test_epsilon_is_the_accountants_and_the_published(noise: float, epochs: int, published: float) -> None:
    updates = num_updates(epochs)
    for accountant, kind in (("rdp", dp_accounting.rdp.RdpAccountant), ("pld", dp_accounting.pld.PLDAccountant)):
        theirs = kind()
        event = dp_accounting.PoissonSampledDpEvent(RATE, dp_accounting.GaussianDpEvent(noise))
        theirs.compose(dp_accounting.SelfComposedDpEvent(event, updates))
        ours = budget(noise, accountant).epsilon(updates)
        assert ours == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-9)
        assert ours < published  # they have found tighter conversions since
    orders = [*(1 + tenths / 10 for tenths in range(1, 100)), *range(12, 64)]  # theirs
    divergences = {order: updates * renyi_divergence(noise, order) for order in orders}
    by_hand = min(value + math.log(1e5) / (order - 1) for order, value in divergences.items())
    assert by_hand == pytest.approx(published, abs=0.01)
    # What dp-accounting has now is the conversion of Canonne, Kamath and Steinke 2020 (arXiv:2004.00010, proposition 12).
    tighter = min(value + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1) for order, value in divergences.items())
    assert budget(noise).epsilon(updates) == pytest.approx(tighter, rel=0.01)
    now = budget(noise).epsilon(updates)
    print(f"noise {noise}, {epochs} epochs: published {published}, by hand {by_hand:.2f}, now {now:.2f}")


def test_nothing_is_spent_by_nothing_and_no_bound_holds_without_noise() -> None:
    assert budget(1.0).epsilon(0) == 0.0
    assert budget(0.0).epsilon(1) == math.inf


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_training_ends_at_the_last_update_that_the_budget_has_room_for(accountant: str) -> None:
    limited = budget(1.0, accountant, epsilon=1.0)
    most = limited.most_updates(3_000)
    assert limited.epsilon(most) <= 1.0 < limited.epsilon(most + 1)
    assert limited.most_updates(most - 1) == most - 1
    assert budget(1.0).most_updates(10**6) == 10**6


def private(steps: int = 500, batch: int = 64, **privacy: Any) -> Config:
    train = {"steps": steps, "global_batch_size": batch, "micro_batch_size": 8}
    values = example_config("classification", "bag_of_embeddings", train=train)
    content = values.model_dump()
    content["optimizer"]["clip_norm"] = None
    return Config.model_validate({**content, "privacy": {"delta": 1e-5, **privacy}})


def test_without_noise_multiplier_it_is_the_least_that_keeps_all_updates_within_the_budget() -> None:
    found = plan_budget(private(epsilon=2.0), 10_000, None)
    assert found.sampling_rate == 64 / 10_000
    assert found.epsilon(500) <= 2.0
    less = Budget(found.config, found.sampling_rate, found.noise_multiplier - 0.004)
    assert less.epsilon(500) > 2.0
    assert found.most_updates(500) == 500


def test_a_run_goes_on_with_the_noise_that_it_was_begun_with() -> None:
    record = PrivacyRecord("00" * 16, 1.75, 64 / 10_000)
    assert plan_budget(private(epsilon=9.0, steps=900), 10_000, record).noise_multiplier == 1.75
    with pytest.raises(CheckpointError, match=r"with probability 0\.0064, and would now with 0\.0128"):
        plan_budget(private(epsilon=9.0, batch=128), 10_000, record)


def test_more_samples_an_update_than_there_are_and_impossible_budgets_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.global_batch_size: got 64, expected at most as many .* which are 50"):
        plan_budget(private(epsilon=2.0), 50, None)
    with pytest.raises(UserError, match=r"privacy\.epsilon: got 1e-06, expected more"):
        plan_budget(private(epsilon=1e-6, steps=10**6), 100, None)


def test_rows_hold_an_updates_sample_but_for_a_chance_that_counts_for_nothing() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for number, rate in ((60_000, 256 / 60_000), (1_000_000, 0.01), (100, 0.5), (10, 0.9)):
        rows = sample_capacity(PrivacyConfig(delta=1e-5, epsilon=1.0), rate, number)
        assert scipy_stats.binom.sf(rows, number, rate) <= 1e-20
        assert rows <= max(10, number * rate + 12 * math.sqrt(number * rate))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"privacy": {"delta": 1e-5}}, "privacy.epsilon: got null, expected a budget"),
        (
            {"privacy": {"delta": 1e-5, "epsilon": 1.0, "noise_multiplier": 0.0}},
            "privacy.noise_multiplier: got 0, expected more",
        ),
        ({"optimizer": {"clip_norm": 1.0}}, "optimizer.clip_norm: got 1, expected null with privacy"),
        ({"data": {"pack": True}}, "data.pack: got true, expected false with privacy"),
        ({"data": {"train": [{"path": "x", "weight": 1.0}]}}, "data.train: got weights, expected none with privacy"),
        ({"data": {"augmentation": {"mixup": 0.5}}}, "data.augmentation.mixup: got mixup 0.5, expected 0 with privacy"),
        ({"train": {"micro_batch_size": None}}, "train.micro_batch_size: got null, expected a number with privacy"),
        ({"train": {"precision": "float16"}}, "train.precision: got float16, expected bfloat16 or float32 with privacy"),
        ({"distribution": {"wire_precision": "float16"}}, "distribution.wire_precision: got float16, expected float32 with"),
        ({"divergence": {"spike_deviations": 5.0}}, "divergence.spike_deviations: got 5, expected null with privacy"),
    ],
)
def test_what_no_bound_would_hold_with_is_refused(changes: dict[str, Any], expected: str, tmp_path: Any) -> None:
    import yaml

    from trainer.config_io import load_config

    content = private(epsilon=1.0).model_dump(mode="json")
    for section, values in changes.items():
        content[section] = {**content[section], **values} if section != "privacy" else values
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as told:
        load_config(tmp_path / "config.yaml")
    assert expected in str(told.value)
