"""What runs really consumed, by their ledgers: the order function's samples, each once an epoch, at every world size."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.training import (
    BIN,
    ROOT,
    TEXT,
    checked,
    json_lines,
    ledger_hash,
    run_command,
    run_path,
    training_config,
    write_config,
)
from trainer.config import Config
from trainer.ledger import rolled

GLOBAL_BATCH_SIZE = 24  # divides by 1, 2, 3 and 8
LENGTH = 16


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small texts and their stores: joined, and mixed three to one. Small, so that runs go through several epochs."""
    from trainer.data.prepare import prepare

    directory = tmp_path_factory.mktemp("sources")
    (directory / "large.txt").write_text(TEXT[:3000])
    (directory / "small.txt").write_text(TEXT[3000:4000])
    for kind in ("joined", "mixed"):
        prepare(config(directory, kind, "prepare"), num_processes=1)
    return directory


def config(directory: Path, kind: str, name: str, steps: int = 40, **sections: Any) -> Config:
    weights = {"joined": (None, None), "mixed": (3.0, 1.0)}[kind]
    train = [
        {"path": str(directory / f"{size}.txt"), "weight": weight}
        for size, weight in zip(("large", "small"), weights, strict=True)
    ]
    data = {"store": str(directory / kind), "train": train, "validation": [], "sequence_length": LENGTH}
    return training_config(
        directory,
        f"{kind}-{name}",
        data=data,
        model={"num_layers": 1, "width": 8},
        train={"steps": steps, "global_batch_size": GLOBAL_BATCH_SIZE, "steps_per_loop": 7},
        checkpoint={"every": 1000},
        **sections,
    )


def sample_ids(settings: Config, steps: int) -> np.ndarray:
    """The ids that a run is to consume [steps, rows], from the order function alone."""
    from trainer.data.corpus import open_corpus

    ids = open_corpus(settings).order.sample_ids(0, steps * GLOBAL_BATCH_SIZE)
    return np.asarray(ids).reshape(steps, GLOBAL_BATCH_SIZE)


def expected_hash(settings: Config) -> str:
    rolling = ""
    for ids in sample_ids(settings, settings.train.steps):
        rolling = rolled(rolling, ids)
    return rolling


def assert_consumed_in_order(settings: Config, num_replicas: int) -> None:
    run = run_path(settings)
    assert ledger_hash(run) == expected_hash(settings)
    lines = json_lines(run / "ledger.jsonl")
    assert {line["num_replicas"] for line in lines} == {num_replicas}
    ranges = [(line["first_step"], line["step"]) for line in lines if "first_step" in line]
    assert ranges[0][0] == 1 and ranges[-1][1] == settings.train.steps
    assert all(later[0] == earlier[1] + 1 for earlier, later in itertools.pairwise(ranges))
    state = json.loads((run / "checkpoints" / f"step-{settings.train.steps:08d}" / "state.json").read_text())
    assert state["progress"]["num_samples"] == settings.train.steps * GLOBAL_BATCH_SIZE


@pytest.mark.parametrize("kind", ["joined", "mixed"])
def test_one_replica_consumes_what_the_order_says(sources: Path, tensorflow: ModuleType, kind: str) -> None:
    from trainer.loop import train

    settings = config(sources, kind, "single")
    train(settings)
    assert_consumed_in_order(settings, 1)


@pytest.mark.slow
def test_two_three_and_eight_replicas_consume_what_the_order_says(sources: Path) -> None:
    runs = [
        (
            config(sources, kind, f"mirrored-{number}", distribution={"backend": "mirrored", "num_replicas": number}),
            number,
        )
        for number, kind in ((2, "joined"), (3, "joined"), (8, "joined"), (3, "mixed"))
    ]
    files = [str(write_config(settings, sources / f"{settings.run.name}.yaml")) for settings, _ in runs]
    script = str(ROOT / "tests" / "integration" / "train_mirrored.py")
    checked(run_command([sys.executable, script, *files]))
    for settings, number in runs:
        assert_consumed_in_order(settings, number)


@pytest.mark.processes
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_horovod_ranks_consume_what_the_order_says(sources: Path, num_ranks: int) -> None:
    settings = config(
        sources,
        "mixed",
        f"horovod-{num_ranks}",
        distribution={"backend": "horovod"},
    )
    file = str(write_config(settings, sources / f"{settings.run.name}.yaml"))
    horovodrun = [str(BIN / "horovodrun"), "-np", str(num_ranks), "-H", f"localhost:{num_ranks}"]
    checked(run_command([*horovodrun, str(BIN / "drumline"), "train", file]))
    assert_consumed_in_order(settings, num_ranks)


def test_within_an_epoch_no_sample_comes_twice_or_never(sources: Path, tensorflow: ModuleType) -> None:
    """The ids that the ledgers above are held against."""
    from trainer.data.corpus import open_corpus

    settings = config(sources, "joined", "order")
    num_samples = open_corpus(settings).order.num_samples
    ids = sample_ids(settings, 40).reshape(-1)
    num_epochs = len(ids) // num_samples
    assert num_epochs >= 3
    epochs = ids[: num_epochs * num_samples].reshape(num_epochs, num_samples)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_samples))
    assert (epochs[0] != epochs[1]).any()


def test_in_a_mixture_each_source_has_epochs_of_its_own_and_its_share(sources: Path, tensorflow: ModuleType) -> None:
    from trainer.data.corpus import open_corpus

    settings = config(sources, "mixed", "order")
    corpus = open_corpus(settings)
    num_large, num_small = (samples.num_samples for samples in corpus.train)
    ids = sample_ids(settings, 128).reshape(-1)
    for number, (first, size) in enumerate(((0, num_large), (num_large, num_small))):
        drawn = ids[(ids >= first) & (ids < first + size)] - first
        assert len(drawn) / len(ids) == pytest.approx((0.75, 0.25)[number], abs=1e-3)
        for begin in range(0, len(drawn) - size + 1, size):
            np.testing.assert_array_equal(np.sort(drawn[begin : begin + size]), np.arange(size))
