"""Whatever is damaged in a checkpoint is found, the newest good one is taken instead, and no run begins silently from zero."""

from __future__ import annotations

import json
import logging
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.faults.conftest import Figures
from tests.training import run_path, train_losses, training_config
from trainer.checkpoint import (
    MANIFEST,
    Checkpoint,
    choose_checkpoint,
    list_checkpoints,
    newest_good,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from trainer.errors import CheckpointError
from trainer.progress import Progress

# Damages the checkpoint at a path; the folder has those that are intact.
Damage = Callable[[Path, Path, random.Random], None]
STEPS = (10, 20, 30, 40)
NUM_DAMAGES = 100


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of four steps, of some tens of kilobytes each."""
    directory = tmp_path_factory.mktemp("intact")
    generator = np.random.default_rng(1)
    for step in STEPS:
        weights = {name: generator.standard_normal((64, 32), np.float32) for name in ("embedding", "output")}
        moments = {f"first_moments.{name}": 0.1 * weight for name, weight in weights.items()}
        progress = Progress(step=step, num_samples=8 * step, ledger_hash=f"{step:064x}", validation={"loss": 3.0 - 0.01 * step})
        identity = {"model.width": 32, "run.seed": 7}
        write_checkpoint(directory, Checkpoint(weights, moments, progress, identity), {"world_size": 2, "run": "intact"})
    return directory


def flip_a_bit(path: Path, intact: Path, generator: random.Random) -> None:
    file = generator.choice(sorted(path.iterdir()))
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def flip_a_bit_of_the_manifest(path: Path, intact: Path, generator: random.Random) -> None:
    content = bytearray((path / MANIFEST).read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    (path / MANIFEST).write_bytes(content)


def cut_short(path: Path, intact: Path, generator: random.Random) -> None:
    file = generator.choice(sorted(path.iterdir()))
    file.write_bytes(file.read_bytes()[: generator.randrange(file.stat().st_size)])


def remove_a_file(path: Path, intact: Path, generator: random.Random) -> None:
    generator.choice(sorted(path.iterdir())).unlink()


def empty_the_manifest(path: Path, intact: Path, generator: random.Random) -> None:
    (path / MANIFEST).write_bytes(generator.choice((b"", b"{}", b"null", b"\0" * 512)))


def swap_two_files(path: Path, intact: Path, generator: random.Random) -> None:
    one, other = generator.sample(sorted(path.iterdir()), 2)
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0]), one.write_bytes(contents[1])


def take_a_file_of_another_checkpoint(path: Path, intact: Path, generator: random.Random) -> None:
    """Weights and optimizer of equal size, the state, or the manifest: each of them whole in itself."""
    another = generator.choice([folder for folder in intact.glob("step-*") if folder.name != path.name])
    name = generator.choice(sorted(file.name for file in path.iterdir()))
    shutil.copy(another / name, path / name)


def take_all_of_another_checkpoint(path: Path, intact: Path, generator: random.Random) -> None:
    """As a folder that was renamed by hand."""
    another = generator.choice([folder for folder in intact.glob("step-*") if folder.name != path.name])
    shutil.rmtree(path)
    shutil.copytree(another, path)


def append_to_a_file(path: Path, intact: Path, generator: random.Random) -> None:
    with generator.choice(sorted(path.iterdir())).open("ab") as file:
        file.write(generator.choice((b"\n", b" ", b"\0", b"x" * 4096)))


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    flip_a_bit_of_the_manifest,
    cut_short,
    remove_a_file,
    empty_the_manifest,
    swap_two_files,
    take_a_file_of_another_checkpoint,
    take_all_of_another_checkpoint,
    append_to_a_file,
)


def test_a_hundred_damages_are_found_and_passed_over(
    intact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, figures: Figures
) -> None:
    """One to three of the four checkpoints are damaged, the newest always among them."""
    generator, began = random.Random(1), time.monotonic()
    num_damaged = 0
    for number in range(NUM_DAMAGES):
        directory = tmp_path / str(number)
        shutil.copytree(intact, directory)
        infos = list_checkpoints(directory)
        doomed = [infos[-1], *generator.sample(infos[:-1], generator.randrange(3))]
        damage = DAMAGES[number % len(DAMAGES)]
        for info in doomed:
            damage(info.path, intact, generator)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = newest_good(directory)
        expected = max(info.step for info in infos if info not in doomed)
        assert found is not None and found.name == f"step-{expected:08d}", damage.__name__
        assert read_checkpoint(found).progress.step == expected
        passed_over = [info for info in doomed if info.step > expected]
        for info in doomed:
            assert verify_checkpoint(info.path) is not None, f"{damage.__name__} of {info.path.name} was not found"
            with pytest.raises(CheckpointError):
                choose_checkpoint(directory, str(info.step))
        for info in passed_over:
            assert str(info.path) in caplog.text, f"{damage.__name__}: {info.path.name} is not named"
        num_damaged += len(doomed)
        shutil.rmtree(directory)
    figures.add(
        "damaged checkpoints",
        rounds=NUM_DAMAGES,
        damaged=num_damaged,
        detected=num_damaged,
        loaded=0,
        seconds=time.monotonic() - began,
    )


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_when_all_are_damaged_that_is_an_error(intact: Path, tmp_path: Path, damage: Damage) -> None:
    directory = tmp_path / "checkpoints"
    shutil.copytree(intact, directory)
    generator = random.Random(2)
    for info in list_checkpoints(directory):
        damage(info.path, intact, generator)
    with pytest.raises(CheckpointError, match="none of its 4 checkpoints is good") as error:
        newest_good(directory)
    assert all(f"step-{step:08d}" in str(error.value) for step in STEPS)


def test_a_run_goes_on_from_the_newest_good_one_and_never_from_zero(
    store: Path, tensorflow: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.loop import train

    config = training_config(store, "damaged", train={"steps": 12}, checkpoint={"every": 4}, evaluation={"every": 12})
    run = run_path(config)
    train(config)
    losses = train_losses(run)
    paths = [info.path for info in list_checkpoints(run / "checkpoints")]
    generator = random.Random(3)
    for path in paths[1:]:
        flip_a_bit(path, run, generator)
    with caplog.at_level(logging.WARNING):
        train(config)
    assert all(path.name in caplog.text for path in paths[1:])
    assert train_losses(run) == losses
    assert [start["step"] for start in json.loads((run / "run.json").read_text())["starts"]] == [0, 4]

    for info in list_checkpoints(run / "checkpoints"):
        flip_a_bit(info.path, run, generator)
    with pytest.raises(CheckpointError, match="none of its"):
        train(config)
    assert train_losses(run) == losses
