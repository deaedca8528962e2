"""Real processes under the watchdog, one of which is killed, stopped, hangs or fails: who is named, how all of them end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training import checked, run_python

SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    "nothing": {"harm": "nothing", "rank": 0, "num_ranks": 3},
    "the chief is killed": {"harm": "kill", "rank": 0, "num_ranks": 3},
    "rank 1 is killed": {"harm": "kill", "rank": 1, "num_ranks": 3},
    "rank 1 is killed and the collective fails": {"harm": "break", "rank": 1, "num_ranks": 3},
    "the chief is killed and the collective fails": {"harm": "break", "rank": 0, "num_ranks": 3},
    "the chief is stopped": {"harm": "stop", "rank": 0, "num_ranks": 3},
    "rank 1 is stopped": {"harm": "stop", "rank": 1, "num_ranks": 3},
    "the chief hangs": {"harm": "hang", "rank": 0, "num_ranks": 2, "least_seconds": 1.5},
    "rank 1 hangs": {"harm": "hang", "rank": 1, "num_ranks": 2, "least_seconds": 1.5},
    "a process alone hangs": {"harm": "hang", "rank": 0, "num_ranks": 1, "least_seconds": 1.5},
    "a process alone fails": {"harm": "raise", "rank": 0, "num_ranks": 1},
    "the chief fails": {"harm": "raise", "rank": 0, "num_ranks": 2},
    "rank 1 fails": {"harm": "raise", "rank": 1, "num_ranks": 2},
    "rank 1 has made a mistake": {"harm": "mistake", "rank": 1, "num_ranks": 2},
    "all diverge": {"harm": "diverge", "rank": 0, "num_ranks": 2},
    "all are suspended for a while": {"harm": "suspend", "rank": 0, "num_ranks": 2, "least_seconds": 2.0},
    "rank 1 holds the interpreter for 2 s": {"harm": "hold the interpreter", "rank": 1, "num_ranks": 2},
    "rank 1 hangs with the log": {"harm": "hang with the log", "rank": 1, "num_ranks": 2, "least_seconds": 1.5},
    "rank 1 never joins": {"harm": "never join", "rank": 1, "num_ranks": 2, "startup_seconds": 2.0},
    "the chief is out of reach": {"harm": "be out of reach", "rank": 0, "num_ranks": 3},
    "not enabled": {"harm": "nothing", "rank": 0, "num_ranks": 2, "enabled": False},
}
WITHOUT_FOLDER = ("the chief hangs",)


@dataclass(frozen=True)
class Outcome:
    """Exit codes and stderr by rank, the seconds from the harm until all were gone, and the stacks by file name."""

    codes: list[int]
    told: list[str]
    seconds: float
    stacks: dict[str, str]


Outcomes = Mapping[str, Outcome]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Of all scenarios, played at once."""
    folders = {name: tmp_path_factory.mktemp("ranks") for name in SCENARIOS}
    for name, folder in folders.items():
        if name not in WITHOUT_FOLDER:
            (folder / "run").mkdir()
    scenarios = {name: {**scenario, "folder": str(folders[name])} for name, scenario in SCENARIOS.items()}
    checked(run_python("-m", "tests.unit.watched_ranks", json.dumps(scenarios), timeout=60))
    return {name: read_outcome(folder) for name, folder in folders.items()}


def read_outcome(folder: Path) -> Outcome:
    stacks = {path.name: path.read_text() for path in folder.glob("run/*")}
    return Outcome(**json.loads((folder / "outcome.json").read_text()), stacks=stacks)


@pytest.mark.parametrize(
    "name", ["nothing", "all are suspended for a while", "rank 1 holds the interpreter for 2 s", "not enabled"]
)
def test_ranks_that_end_well_say_nothing(outcomes: Outcomes, name: str) -> None:
    ended = outcomes[name]
    assert set(ended.codes) == {0}, ended
    assert not any(ended.told) and not ended.stacks


@pytest.mark.parametrize("collective", ["", " and the collective fails"])
@pytest.mark.parametrize(("name", "rank"), [("the chief is killed", 0), ("rank 1 is killed", 1)])
def test_a_rank_that_is_killed_is_named_and_the_others_leave(outcomes: Outcomes, name: str, rank: int, collective: str) -> None:
    ended = outcomes[name + collective]
    assert ended.codes == [-9 if each == rank else 70 for each in range(3)], ended
    assert 1.5 < ended.seconds < 8
    for each in {0, 1, 2} - {rank}:
        line = ended.told[each].splitlines()[0]
        assert line.startswith(f"rank {rank} of 3 (process ")
        assert "is gone: its connection closed during training, step " in line
        assert line.endswith("leaving with exit code 70")
    if collective:
        assert "consequence of it, on rank 2: RuntimeError: collective aborted" in ended.told[2]
    assert not ended.stacks


@pytest.mark.parametrize(("name", "rank"), [("the chief is stopped", 0), ("rank 1 is stopped", 1)])
def test_a_rank_that_is_stopped_is_named_and_leaves_when_it_goes_on(outcomes: Outcomes, name: str, rank: int) -> None:
    ended = outcomes[name]
    assert ended.codes == [70, 70, 70], ended
    assert 3 < ended.seconds < 10
    for each in {0, 1, 2} - {rank}:
        assert f"hang: of 3 ranks 1 did not arrive: rank {rank} (process" in ended.told[each]
        assert "not heard of for 3 s, last in training, step " in ended.told[each]
        assert "sum_over_processes" in ended.stacks[f"hang-rank-{each:05d}.txt"]


@pytest.mark.parametrize(("name", "rank"), [("the chief hangs", 0), ("rank 1 hangs", 1)])
def test_a_rank_that_hangs_is_named_with_the_line_at_which_it_is(outcomes: Outcomes, name: str, rank: int) -> None:
    ended = outcomes[name]
    assert ended.codes == [70, 70], ended
    for told in ended.told:
        line = told.splitlines()[0]
        assert line.startswith(f"hang: of 2 ranks 1 did not arrive: rank {rank} (process ")
        assert ": training, step 4 (step 4, computing) for " in line
        others = r"; the others: training, step 4 \(step 4, waiting for the other ranks\) for \d s; leaving with exit code 70$"
        assert re.search(others, line)
    assert "in wait_for_ever" in ended.told[rank]
    assert "in sum_over_processes" in ended.told[1 - rank]
    if name in WITHOUT_FOLDER:
        assert not ended.stacks
        assert all("the stacks are only here: " in told and "No such file or directory" in told for told in ended.told)
    else:
        assert sorted(ended.stacks) == ["hang-rank-00000.txt", "hang-rank-00001.txt"]
        assert "in wait_for_ever" in ended.stacks[f"hang-rank-0000{rank}.txt"]


def test_a_rank_leaves_also_where_it_can_no_longer_log(outcomes: Outcomes) -> None:
    ended = outcomes["rank 1 hangs with the log"]
    assert ended.codes == [70, 70], ended
    assert ended.told[1].startswith("hang: of 2 ranks 1 did not arrive: rank 1 (process ")
    assert "in wait_for_ever" in ended.stacks["hang-rank-00001.txt"]


def test_before_they_have_joined_each_watches_itself(outcomes: Outcomes) -> None:
    ended = outcomes["rank 1 never joins"]
    assert ended.codes == [70, 70], ended
    assert all(told.startswith("hang: no progress in starting for 2 s, limit 2 s; leaving") for told in ended.told)
    names = sorted(ended.stacks)
    assert names[0].startswith("hang-process-") and names[1] == "hang-rank-00000.txt", "rank 1 did not know its number"


def test_where_ranks_cannot_reach_the_chief_none_trains(outcomes: Outcomes) -> None:
    ended = outcomes["the chief is out of reach"]
    assert ended.codes == [2, 2, 2], ended
    assert ended.told[0] == "drumline: the watchdog of ranks 1-2 has no connection to the others: see the message there\n"
    for rank in (1, 2):
        assert ended.told[rank].startswith(
            f"drumline: rank {rank} cannot reach the watchdog of rank 0 at no-such-host.invalid:"
        )


def test_a_process_alone_watches_itself(outcomes: Outcomes) -> None:
    ended = outcomes["a process alone hangs"]
    assert ended.codes == [70], ended
    assert ended.told[0].startswith("hang: no progress in training, step 4 (step 4, computing) for 2 s, limit 2 s; leaving")
    assert "in wait_for_ever" in ended.stacks["hang-rank-00000.txt"]


def test_a_process_alone_that_fails_is_as_if_unwatched(outcomes: Outcomes) -> None:
    ended = outcomes["a process alone fails"]
    assert ended.codes == [1] and ended.told[0].startswith("Traceback"), ended


@pytest.mark.parametrize(("name", "rank"), [("the chief fails", 0), ("rank 1 fails", 1)])
def test_a_rank_that_fails_is_the_first_to_end(outcomes: Outcomes, name: str, rank: int) -> None:
    ended = outcomes[name]
    assert ended.codes == [1 if each == rank else 70 for each in range(2)], ended
    assert ended.told[rank].startswith("Traceback")
    assert ended.told[1 - rank] == f"rank {rank} of 2 failed: ValueError: seven is not a number; leaving with exit code 70\n"


def test_a_mistake_keeps_its_own_exit_code(outcomes: Outcomes) -> None:
    ended = outcomes["rank 1 has made a mistake"]
    assert ended.codes == [70, 2], ended
    assert "rank 1 of 2 failed: the disk of this rank is full" in ended.told[0]
    assert ended.told[1] == "drumline: the disk of this rank is full: delete something\n"


def test_ranks_that_fail_together_end_by_themselves(outcomes: Outcomes) -> None:
    ended = outcomes["all diverge"]
    assert ended.codes == [3, 3], ended
    assert ended.told == ["drumline: the loss is not finite\n"] * 2


def test_it_does_without_tensorflow() -> None:
    program = "import sys, trainer.monitor.watchdog, trainer.stop; sys.exit('tensorflow' in sys.modules)"
    checked(run_python("-c", program))
