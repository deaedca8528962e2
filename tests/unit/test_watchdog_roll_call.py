"""The verdict on ranks' reports: who is missing, when that is a hang, and how it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.monitor.roll_call import STAGES, Report, name_ranks, roll_call

BATCH, COMPUTING, WAITING, UPDATING = STAGES


def report(rank: int, step: int, stage: str, seconds: float = 130.0, **others: object) -> Report:
    known = Report(rank, number=5, phase="training, steps 21 to 30", seconds=seconds, limit=120.0, step=step, stage=stage)
    return replace(known, **others)  # type: ignore[arg-type]


def missing(*reports: Report) -> tuple[int, ...] | None:
    verdict = roll_call(reports, len(reports), silence_seconds=20.0)
    return None if verdict is None else verdict.ranks


def told(*reports: Report) -> str:
    verdict = roll_call(reports, len(reports), silence_seconds=20.0)
    assert verdict is not None and "\n" not in verdict.line
    return verdict.line


def test_within_its_limit_nobody_is_missing() -> None:
    assert missing(report(0, 24, WAITING, 119.0), report(1, 24, COMPUTING, 118.0)) is None
    assert missing(report(0, 24, WAITING, 1.0), report(1, 23, UPDATING, 1.0), report(2, 24, BATCH, 1.0)) is None


@pytest.mark.parametrize("stage", [BATCH, COMPUTING])
def test_who_has_not_come_to_where_the_others_wait_is_missing(stage: str) -> None:
    assert missing(report(0, 24, WAITING), report(1, 24, stage), report(2, 24, WAITING)) == (1,)
    assert missing(report(0, 24, stage), report(1, 24, WAITING), report(2, 24, WAITING)) == (0,)


def test_an_earlier_step_or_phase_is_behind_whatever_its_stage() -> None:
    assert missing(report(0, 24, BATCH), report(1, 23, UPDATING)) == (1,)
    assert missing(report(0, 0, "", number=6, phase="evaluating"), report(1, 30, UPDATING)) == (1,)
    assert missing(report(0, 24, COMPUTING), report(1, -1, "")) == (1,)


def test_where_all_stand_at_the_same_place_none_is_called_missing() -> None:
    line = told(report(0, 24, WAITING), report(1, 24, WAITING), report(2, 24, WAITING))
    assert missing(report(0, 24, WAITING), report(1, 24, WAITING)) == ()
    assert line == (
        "hang: no rank of 3 is behind the others: "
        "ranks 0-2: training, steps 21 to 30 (step 24, waiting for the other ranks) for 130 s, limit 120 s"
    )


def test_at_the_same_place_different_lines_of_code_are_told_apart() -> None:
    here = [report(rank, -1, "", note="at sum (horovod.py:7)") for rank in (0, 2, 3)]
    line = told(*here, report(1, -1, "", note="at read (store.py:9)"))
    assert "ranks 0, 2-3: " in line and "at sum (horovod.py:7); rank 1: " in line and line.endswith("at read (store.py:9)")


def test_a_rank_may_wait_as_long_as_another_may_take() -> None:
    compiling = report(1, 0, COMPUTING, seconds=125.0, limit=1800.0)
    assert missing(report(0, 0, WAITING, seconds=125.0), compiling) is None
    assert missing(report(0, 0, WAITING, seconds=125.0), replace(compiling, limit=124.0)) == (1,)


def test_a_rank_that_is_behind_but_never_stands_still_is_missed_in_the_end() -> None:
    busy = report(1, 23, COMPUTING, seconds=0.5, limit=300.0)
    assert missing(report(0, 24, WAITING, seconds=299.0), busy) is None
    assert missing(report(0, 24, WAITING, seconds=304.0), busy) == (1,)


def test_who_has_just_made_progress_may_be_further_than_it_has_said() -> None:
    quick = {"limit": 1.0}
    assert missing(report(0, 24, COMPUTING, 2.5, **quick), report(1, 24, COMPUTING, 1.5, **quick)) is None
    assert missing(report(0, 24, COMPUTING, 3.5, **quick), report(1, 24, WAITING, 3.0, **quick)) == (0,)


def test_silence_alone_is_enough() -> None:
    silent = report(1, 24, COMPUTING, seconds=0.2, silent_seconds=21.0, who="process 7 on node2")
    reports = report(0, 24, WAITING, 19.0), silent
    assert missing(*reports) == (1,)
    assert told(*reports) == (
        "hang: of 2 ranks 1 did not arrive: rank 1 (process 7 on node2): not heard of for 21 s, last in training, "
        "steps 21 to 30 (step 24, computing); the others: training, steps 21 to 30 "
        "(step 24, waiting for the other ranks) for 19 s"
    )
    assert missing(report(0, 24, WAITING, 19.0), replace(silent, silent_seconds=19.0)) is None


def test_who_is_quiet_when_the_limit_is_exceeded_is_missing_too() -> None:
    assert missing(report(0, 24, WAITING), report(1, 24, WAITING, 125.0, silent_seconds=6.0)) == (1,)
    assert missing(report(0, 24, WAITING), report(1, 24, WAITING, silent_seconds=1.5)) == ()


def test_a_process_alone() -> None:
    assert told(report(0, 24, COMPUTING, note="at f (x.py:1)")) == (
        "hang: no progress in training, steps 21 to 30 (step 24, computing) for 130 s, limit 120 s, at f (x.py:1)"
    )


def test_many_missing_ranks_are_told_in_few_words() -> None:
    line = told(*(report(rank, rank if rank < 40 else 50, COMPUTING) for rank in range(64)))
    assert "of 64 ranks 40 did not arrive" in line and "32 groups more" in line and len(line) < 1000


@pytest.mark.parametrize(
    ("ranks", "name"), [([3], "rank 3"), ([2, 0], "ranks 0, 2"), ([1, 2, 3, 7], "ranks 1-3, 7"), (range(8), "ranks 0-7")]
)
def test_names(ranks: list[int], name: str) -> None:
    assert name_ranks(ranks) == name
