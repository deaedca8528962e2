"""A small corpus and its token store, made once for all integration tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training import training_config, write_texts
from trainer.data.prepare import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text and the store made of it; runs of tests go into `runs` beside it."""
    directory = tmp_path_factory.mktemp("prepared")
    write_texts(directory)
    prepare(training_config(directory, "prepare"), num_processes=1)
    return directory


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is the current one during the test."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)
