"""Who takes which trial: two processes at once, one that was killed, one that was interrupted."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.training import ROOT, environment
from trainer.config import SearchConfig
from trainer.errors import UserError
from trainer.search.trials import Trials, index_of, open_study, reason_of, without_password

NUM_TRIALS = 24
# Takes trials until none is left; with an argument, waits with the first one until it is killed.
TAKER = """
import sys, time
from pathlib import Path
from tests.unit.test_search_trials import trials_of
trials = trials_of(Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None)
while (trial := trials.take()) is not None:
    print(trial.user_attrs["index"], flush=True)
    time.sleep(1000.0 if len(sys.argv) > 4 else 0.01)
    trials.complete(trial, 1.0)
"""


def search(method: str, **changes: Any) -> SearchConfig:
    values = {
        "name": "shared",
        "config": "none.yaml",
        "method": method,
        "trials": NUM_TRIALS,
        "parameters": {"a": {"low": 0.0, "high": 1.0}, "b": {"values": [1, 2]}},
    }
    return SearchConfig.model_validate(values | changes)


def trials_of(folder: Path, method: str, url: str | None = None, **changes: Any) -> Trials:
    settings = search(method, **changes)
    return Trials(settings, open_study(settings, folder, url))


def start(folder: Path, method: str, url: str | None, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TAKER, str(folder), method, url or "", *options]
    return subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("method", ["grid", "random", "bayesian"])
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_processes_at_once_take_each_trial_once(tmp_path: Path, method: str, storage: str) -> None:
    url = f"journal:{tmp_path / 'journal.log'}" if storage == "journal" else None
    processes = [start(tmp_path, method, url) for _ in range(3)]
    taken = [int(line) for process in processes for line in process.communicate(timeout=120)[0].split()]
    assert all(process.returncode == 0 for process in processes)
    assert sorted(taken) == list(range(NUM_TRIALS))
    done = trials_of(tmp_path, method, url).latest()
    assert Counter(trial.state for trial in done) == {TrialState.COMPLETE: NUM_TRIALS}


@pytest.mark.parametrize("method", ["grid", "bayesian"])
def test_a_trial_whose_process_was_killed_is_taken_again_with_the_same_settings(tmp_path: Path, method: str) -> None:
    killed = start(tmp_path, method, None, "wait")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "0\n"
    trials = trials_of(tmp_path, method)
    (lost,) = trials.latest()
    killed.kill()
    killed.communicate()
    again = trials.take()
    assert again is not None
    assert (index_of(again), again.params) == (0, lost.params)
    assert again.number != lost.number


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_what_is_given_back_is_taken_next_and_what_failed_is_not(tmp_path: Path, method: str) -> None:
    trials = trials_of(tmp_path, method)
    first, second = trials.take(), trials.take()
    assert first is not None and second is not None
    trials.give_back(first)
    trials.fail(second, "it was too large")
    again, next_one = trials.take(), trials.take()
    assert again is not None and next_one is not None
    assert [index_of(again), index_of(next_one)] == [0, 2]
    assert again.params == first.params
    assert [reason_of(trial) for trial in trials.latest()] == [None, "it was too large", None]


def test_more_trials_may_be_asked_for_later(tmp_path: Path) -> None:
    few = trials_of(tmp_path, "random", trials=2)
    for _ in range(2):
        trial = few.take()
        assert trial is not None
        few.complete(trial, 1.0)
    assert few.take() is None and few.is_done()
    more = trials_of(tmp_path, "random", trials=3)
    trial = more.take()
    assert trial is not None and index_of(trial) == 2


def test_a_storage_that_cannot_be_reached_is_told_without_its_password(tmp_path: Path) -> None:
    url = "postgresql+pg8000://somebody:secret@127.0.0.1:1/none"
    with pytest.raises(UserError, match=r"storage: .*somebody@127\.0\.0\.1:1/none cannot be used") as raised:
        open_study(search("random"), tmp_path, url)
    assert "secret" not in str(raised.value)
    assert without_password("sqlite:///runs/a@b.db") == "sqlite:///runs/a@b.db"
