"""Lines are whole or absent, and none is lost where a disk is full for a while."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.line_file import LineFile


@pytest.fixture
def limited() -> Iterator[None]:
    """Files of this process may have 100 bytes: the kernel takes what fits of a line, and then nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for number in range(2):
        file = LineFile(path)
        file.append({"number": number})
        file.close()
    assert lines(path) == [{"number": 0}, {"number": 1}]


def test_what_does_not_fit_waits_and_comes_whole_and_in_order(
    tmp_path: Path, limited: None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    for number in range(12):
        file.append({"number": number, "text": "x" * 10})
    assert len(lines(path)) == 2 and path.stat().st_size < 100, "a part of a line was left"
    assert caplog.text.count("cannot be written") == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    file.append({"number": 12})
    file.close()
    assert [line["number"] for line in lines(path)] == list(range(13))  # type: ignore[index]
    assert "can be written again" in caplog.text


def test_what_never_fits_is_told_at_the_end(tmp_path: Path, limited: None, caplog: pytest.LogCaptureFixture) -> None:
    file = LineFile(tmp_path / "lines.jsonl")
    for _ in range(5):
        file.append({"text": "x" * 40})
    file.close()
    assert "4 lines could not be written and are lost" in caplog.text
    assert len(lines(tmp_path / "lines.jsonl")) == 1


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        LineFile(tmp_path / "lines.jsonl").append({"loss": float("nan")})
