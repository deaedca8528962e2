"""Lines are whole or absent, and none is lost where a disk is full for a while."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.line_file import LineFile

# The limit is of a whole process, and so in one of its own: its files may have 100 bytes. The kernel takes what fits of a
# line, and then nothing; `again` gives more room.
LIMITED = """
import logging, resource, signal, sys
from pathlib import Path
from trainer.line_file import LineFile
logging.basicConfig(format="%(message)s", stream=sys.stdout)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited))
file = LineFile(Path(sys.argv[1]))
for number in range(12):
    file.append({"number": number, "text": "x" * 10})
assert Path(sys.argv[1]).stat().st_size < 100, "a part of a line was left"
if sys.argv[2] == "again":
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    file.append({"number": 12})
file.close()
"""


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["number"] for line in path.read_text().splitlines()]


def write_limited(path: Path, then: str) -> str:
    command = [sys.executable, "-c", LIMITED, str(path), then]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_lines_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for number in range(2):
        file = LineFile(path)
        file.append({"number": number})
        file.close()
    assert numbers(path) == [0, 1]


def test_what_does_not_fit_waits_and_comes_whole_and_in_order(tmp_path: Path) -> None:
    said = write_limited(tmp_path / "lines.jsonl", "again")
    assert numbers(tmp_path / "lines.jsonl") == list(range(13))
    assert said.count("cannot be written") == 1 and "can be written again; no line of it is lost" in said


def test_what_never_fits_is_told_at_the_end(tmp_path: Path) -> None:
    said = write_limited(tmp_path / "lines.jsonl", "never")
    assert numbers(tmp_path / "lines.jsonl") == [0, 1]
    assert "10 lines could not be written and are lost" in said


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        LineFile(tmp_path / "lines.jsonl").append({"loss": float("nan")})
