"""Which machines train together, of those that a discovery script names; then real scripts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.discovery import Discovery, ask
from launch.membership import Absences, Gang, describe_change, form_gang, parse_discovery, possible_sizes
from tests.unit.launch_programs import becomes_true
from trainer.config import TrainConfig
from trainer.errors import ConfigError, UserError


def gang(text: str) -> Gang:
    return Gang(tuple(parse_discovery(text.replace(",", "\n")).items()))


def test_what_a_script_prints() -> None:
    assert parse_discovery("b:2\n\n a:4 \nc:0\n") == {"b": 2, "a": 4, "c": 0}
    assert parse_discovery("") == {}


@pytest.mark.parametrize("text", ["a", "a:", ":2", "a:x", "a:-1", "a b:2", "a:1\na:2"])
def test_what_a_script_must_not_print(text: str) -> None:
    with pytest.raises(UserError, match="--discovery"):
        parse_discovery(text)


def test_sizes_are_those_that_divide_the_batch() -> None:
    train = TrainConfig(steps=1, global_batch_size=24, micro_batch_size=12)
    assert possible_sizes(train, 2, 8) == (6, 4, 3, 2)


def test_a_range_without_a_size_that_divides_is_refused() -> None:
    train = TrainConfig(steps=1, global_batch_size=8)
    with pytest.raises(ConfigError, match="number of replicas, which is 7"):
        possible_sizes(train, 5, 7)


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ("a:2,b:2", "a:2,b:2"),  # all
        ("a:2,b:1", "a:2"),  # 3 does not divide
        ("a:4,b:4", "a:4"),  # no more than the most
        ("b:1,a:1", "b:1,a:1"),  # in the script's order
        ("a:0,b:1", "b:1"),
        ("a:1", "a:1"),
    ],
)
def test_the_largest_possible_gang_is_formed(slots: str, expected: str) -> None:
    assert str(form_gang(parse_discovery(slots.replace(",", "\n")), (4, 2, 1))) == expected


def test_too_few_slots_are_no_gang() -> None:
    assert form_gang({"a": 1}, (4, 2)) is None
    assert form_gang({}, (1,)) is None


@pytest.mark.parametrize("slots", [{"b": 2, "a": 2}, {"a": 4, "b": 2}, {"a": 2, "b": 2, "c": 4}, {"a": 2, "b": 3}])
def test_a_gang_stays_as_it_is_where_a_new_one_would_be_no_larger(slots: dict[str, int]) -> None:
    current = gang("a:2,b:2")
    assert form_gang(slots, (4, 2, 1), current) is current


@pytest.mark.parametrize(
    ("slots", "expected", "told"),
    [
        ({"a": 2}, "a:2", "workers 4 -> 2: host b is gone"),
        ({"b": 2}, "b:2", "workers 4 -> 2: host a is gone"),
        ({"a": 2, "b": 1}, "a:2", "workers 4 -> 2: host b has 1 slot"),
        ({"c": 2, "b": 2}, "b:2,c:2", "workers 4 -> 4: host a is gone, host c is there"),
        ({"c": 9, "b": 2, "a": 2}, "a:2,b:2,c:4", "workers 4 -> 8: host c is there"),
        ({"a": 2, "b": 6}, "a:2,b:6", "workers 4 -> 8: host b has 6 slots"),
        ({}, None, "workers 4 -> 0: host a is gone, host b is gone"),
    ],
)
def test_a_change_keeps_the_order_of_those_that_stay_and_says_why(
    slots: dict[str, int], expected: str | None, told: str
) -> None:
    current = gang("a:2,b:2")
    new = form_gang(slots, (8, 4, 2), current)
    assert (str(new) if new else None) == expected
    assert describe_change(current, new, slots) == told


def test_a_machine_that_failed_is_left_out_only_where_the_others_suffice() -> None:
    assert str(form_gang({"a": 2, "b": 2}, (4, 2), left_out={"a"})) == "b:2"
    assert str(form_gang({"a": 2, "b": 1}, (4, 2), left_out={"a"})) == "a:2"
    assert str(form_gang({"a": 2}, (4, 2), left_out={"a"})) == "a:2"


def test_a_machine_that_was_needed_all_the_same_does_not_have_to_go_again() -> None:
    current = gang("a:2")
    assert form_gang({"a": 2, "b": 2}, (2,), current, left_out={"a"}) is current


def test_a_machine_is_left_out_for_longer_each_time() -> None:
    absences = Absences()
    assert absences.failed("a", 1000.0) == 60.0
    assert (absences.left_out(1059.0), absences.left_out(1061.0)) == ({"a"}, set())
    assert absences.failed("a", 1100.0) == 120.0
    assert (absences.left_out(1219.0), absences.left_out(1221.0)) == ({"a"}, set())
    assert [absences.failed("a", 1300.0) for _ in range(6)] == [240, 480, 960, 1800, 1800, 1800]
    assert absences.failed("a", 5000.0) == 60.0  # an hour later it counts as the first


def test_a_script_is_asked_again_and_again(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a:2\n")
    with Discovery(f"cat {hosts}") as discovery:
        assert (discovery.answer.slots, discovery.answer.number) == ({"a": 2}, 1)
        began = discovery.answer.since
        assert becomes_true(lambda: discovery.answer.number >= 2, 5.0)
        assert discovery.answer.since == began
        hosts.write_text("a:2\nb:2\n")
        assert becomes_true(lambda: discovery.answer.slots == {"a": 2, "b": 2}, 5.0)
        assert discovery.answer.since > began


def test_a_script_that_fails_is_warned_about_once_and_the_last_answer_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a:2\n")
    tries = tmp_path / "tries"
    with caplog.at_level("INFO", "launch.discovery"), Discovery(f"echo x >>{tries}; cat {hosts}") as discovery:
        hosts.unlink()
        assert becomes_true(lambda: len(tries.read_text().split()) >= 4, 10.0)
        assert discovery.answer.slots == {"a": 2}
        hosts.write_text("a:1\n")
        assert becomes_true(lambda: discovery.answer.slots == {"a": 1}, 10.0)
    warning, again = (record.getMessage() for record in caplog.records)
    assert "ended with exit code 1: cat: " in warning
    assert warning.endswith("; the last answer holds.")
    assert again.endswith("answers again.")


@pytest.mark.parametrize(
    ("script", "told"), [("exit 3", "exit code 3"), ("no-such-thing", "not found"), ("echo a", "HOST:SLOTS")]
)
def test_a_script_that_fails_at_the_first_time_is_an_error(script: str, told: str) -> None:
    with pytest.raises(UserError, match=told), Discovery(script):
        pass


def test_a_script_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Discovery(f"test -e {flag} && sleep 60; touch {flag}; echo a:1"):
        time.sleep(1.5)
        began = time.monotonic()
    assert time.monotonic() - began < 2.0


def test_a_script_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.discovery._TIMEOUT_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"did not end within 0\.5 s"):
        ask("sleep 60")
