"""Runs with `privacy`: they end at their budget, tell what is spent, resume exactly, and are the same on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.test_sharded_optimizer import on_two_ranks
from tests.training import (
    checked,
    json_lines,
    largest_difference,
    run_path,
    run_python,
    train_losses,
    training_config,
    write_config,
    write_texts,
)
from trainer.checkpoint import newest_good, read_checkpoint
from trainer.config import Config, PrivacyConfig
from trainer.data.prepare import prepare
from trainer.errors import CheckpointError

pytest.importorskip("dp_accounting")

PROGRAM = Path(__file__).with_name("train_several.py")


def private_config(directory: Path, name: str, *, steps: int = 20, backend: str = "single", **privacy: Any) -> Config:
    """Documents of a line each, one a row; of their windows an update has 8 on average."""
    sections: dict[str, Any] = {
        "data": {"pack": False},
        # The keys' biases have no gradient but rounding, of which Adam makes steps of full size.
        "model": {"biases": False},
        "optimizer": {"clip_norm": None, "schedule": "constant", "minimum_learning_rate": 0.0},
        "train": {"steps": steps, "micro_batch_size": 4},
        "distribution": {"backend": backend},
    }
    config = training_config(directory, name, **sections)
    return Config.model_validate({**config.model_dump(), "privacy": {"delta": 1e-4, "clip_norm": 0.1, **privacy}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private")
    write_texts(path)
    prepare(private_config(path, "any", epsilon=1.0))
    return path


def checkpoint(config: Config, step: int | None = None) -> Any:
    directory = run_path(config) / "checkpoints"
    return read_checkpoint(newest_good(directory) if step is None else directory / f"step-{step:08d}")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(folder: Path, tensorflow: Any) -> Config:
    from trainer.loop import train

    config = private_config(folder, "whole", noise_multiplier=1.0, seed=3)
    train(config)
    return config


def validation(config: Config) -> dict[int, float]:
    lines = json_lines(run_path(config) / "metrics.jsonl")
    return {line["step"]: line["epsilon"] for line in lines if line["split"] == "validation"}


def test_evaluations_tell_what_is_spent(whole: Config) -> None:
    spent = validation(whole)
    assert 0 < spent[10] < spent[20]
    record = checkpoint(whole).progress.privacy
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(record.sampling_rate, dp_accounting.GaussianDpEvent(1.0))
    assert spent[20] == pytest.approx(accountant.compose(event, 20).get_epsilon(1e-4))


def test_a_resumed_run_is_the_one_that_was_never_stopped(whole: Config, folder: Path, tensorflow: Any) -> None:
    from trainer.loop import train
    from trainer.verify import verify_run

    stopped = private_config(folder, "stopped", steps=10, noise_multiplier=1.0, seed=3)
    train(stopped)
    train(private_config(folder, "stopped", noise_multiplier=1.0, seed=3))
    assert train_losses(run_path(stopped)) == train_losses(run_path(whole))
    ours, theirs = checkpoint(stopped), checkpoint(whole)
    for name, weight in theirs.weights.items():
        np.testing.assert_array_equal(ours.weights[name], weight, err_msg=name)
    assert "20 steps" in str(verify_run(run_path(stopped)))


def test_updates_have_samples_of_unequal_number_and_rows_without(whole: Config) -> None:
    import trainer.data.corpus
    from trainer.data.poisson_order import PoissonOrder

    progress = checkpoint(whole).progress
    capacity = progress.num_samples // 20
    order = PoissonOrder.of(trainer.data.corpus.open_corpus(whole).order, progress.privacy, capacity)
    numbers = [(order.sample_ids(update * capacity, capacity) >= 0).sum() for update in range(20)]
    assert len(set(numbers)) > 3
    assert 4 < np.mean(numbers) < 12
    assert capacity % 4 == 0 and capacity > max(numbers)


def test_without_a_seed_each_run_has_a_secret_of_its_own(folder: Path, tensorflow: Any) -> None:
    from trainer.loop import train

    configs = [private_config(folder, f"secret-{number}", steps=2, noise_multiplier=1.0) for number in range(2)]
    for config in configs:
        train(config)
    first, second = (checkpoint(config).progress.privacy.secret for config in configs)
    assert first != second
    for config in configs:
        secret = checkpoint(config).progress.privacy.secret
        for path in run_path(config).rglob("*"):
            if path.is_file() and path.name != "state.json":
                assert secret.encode() not in path.read_bytes(), path


def test_training_ends_where_the_budget_is_spent(folder: Path, tensorflow: Any, caplog: pytest.LogCaptureFixture) -> None:
    from trainer.loop import train

    config = private_config(folder, "limited", steps=10_000, noise_multiplier=2.0, epsilon=0.5)
    with caplog.at_level("INFO"):
        train(config)
    progress = checkpoint(config).progress
    assert 1 < progress.step < 10_000
    assert f"privacy: {progress.step} updates spend epsilon 0.49" in caplog.text or "epsilon 0.5" in caplog.text
    assert validation(config)[progress.step] <= 0.5
    with caplog.at_level("INFO"):
        train(config)
    assert f"has all of its {progress.step} steps" in caplog.text
    more = Config.model_validate({**config.model_dump(), "privacy": {**config.privacy.model_dump(), "epsilon": 0.52}})  # type: ignore[union-attr]
    train(more)
    assert checkpoint(config).progress.step > progress.step


def test_privacy_is_not_turned_on_or_off_on_the_way(whole: Config, folder: Path, tensorflow: Any) -> None:
    from trainer.loop import train

    off = whole.model_copy(update={"privacy": None})
    with pytest.raises(CheckpointError, match=r"privacy\.clip_norm was 0\.1 and is now null"):
        train(off)
    with pytest.raises(CheckpointError, match="privacy: the run was begun with it, and now has none"):
        train(off, allowed_changes=["privacy"])
    other = whole.model_copy(update={"privacy": PrivacyConfig(delta=1e-4, noise_multiplier=0.5, clip_norm=0.1)})
    with pytest.raises(CheckpointError, match=r"privacy\.noise_multiplier was 1\.0 and is now 0\.5"):
        train(other)


def test_check_tells_the_budget(whole: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.check import report

    told = report(private_config(folder, "any", noise_multiplier=1.0), 1)
    assert "privacy" in told


def test_updates_that_were_rolled_back_are_spent_and_their_noise_is_not_used_again(folder: Path) -> None:
    from trainer.config import plan_batches
    from trainer.data.corpus import open_corpus
    from trainer.privacy.training import begin_privacy, num_rows, open_privacy
    from trainer.progress import Progress

    config = private_config(folder, "any", steps=20, noise_multiplier=1.0, epsilon=1.0)
    corpus = open_corpus(config)
    plan = plan_batches(config.train, 1, num_rows(config, corpus))
    record = begin_privacy(config, corpus)
    fresh = open_privacy(config, corpus, plan, Progress(privacy=record))
    gone_back = Progress(step=5, num_samples=9 * plan.global_batch_size, privacy=record)
    assert fresh is not None
    assert fresh.num_updates(gone_back) == 9
    assert fresh.epsilon(gone_back) == fresh.budget.epsilon(9)
    limited = fresh.limited(config.model_copy(update={"train": config.train.model_copy(update={"steps": 10_000})}))
    assert fresh.last_step(limited, gone_back) == limited.train.steps - 4


@pytest.mark.processes
def test_two_horovod_ranks_are_as_one(folder: Path, tmp_path: Path) -> None:
    """Without noise, and with: it is added once."""
    names = {f"{kind}-{noise}": noise for kind in ("one", "two") for noise in (0.0, 1.0)}
    configs = {
        name: private_config(folder, name, backend="horovod" if "two" in name else "single", noise_multiplier=noise, seed=3)
        for name, noise in names.items()
    }
    written = {name: write_config(config, tmp_path / f"{name}.yaml") for name, config in configs.items()}
    on_two_ranks([path for name, path in written.items() if "two" in name])
    checked(run_python(PROGRAM, *(path for name, path in written.items() if "one" in name)))
    for noise in (0.0, 1.0):
        one, two = configs[f"one-{noise}"], configs[f"two-{noise}"]
        assert largest_difference(train_losses(run_path(two)), train_losses(run_path(one))) < 1e-6
        lines = [json.loads(line) for line in (run_path(two) / "ledger.jsonl").read_text().splitlines()]
        assert {line["num_replicas"] for line in lines if "hash" in line} == {2}
        found, expected = checkpoint(two), checkpoint(one)
        assert found.progress.ledger_hash == expected.progress.ledger_hash
        for name, weight in expected.weights.items():
            np.testing.assert_allclose(found.weights[name], weight, atol=1e-6, err_msg=name)
