"""Every benchmark of `benchmarks/run_all.py` works, in its tiny form, and reports the rows that it is listed with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.training import ROOT, environment, run_python

RUN_ALL = ROOT / "benchmarks/run_all.py"
# A row of each program that no other reports.
ROW_OF_EACH = (1, 4, 5, 6, 7, 9, 10, 11, 12, 14)


def listed() -> list[set[int]]:
    """The rows of each program, as the file lists them."""
    programs = re.findall(r'^    Program\("\w+\.py", \(([\d, ]+)\)', RUN_ALL.read_text(), re.MULTILINE)
    return [{int(number) for number in re.findall(r"\d+", numbers)} for numbers in programs]


def test_together_the_programs_report_every_row() -> None:
    assert set.union(*listed()) == set(range(1, 15))
    assert all(numbers & set(ROW_OF_EACH) for numbers in listed())


@pytest.mark.benchmarks
@pytest.mark.parametrize("number", ROW_OF_EACH)
def test_a_benchmark_reports_its_rows(number: int, tmp_path: Path) -> None:
    rows, results = tmp_path / "rows.jsonl", tmp_path / "RESULTS.md"
    options = ("--small", "--rounds", "1", "--only", f"{number}", "--rows", rows, "--results", results)
    finished = run_python(RUN_ALL, *options, timeout=900.0)
    outcomes = [json.loads(line) for line in rows.read_text().splitlines()]
    missing = [outcome["said"] for outcome in outcomes if outcome["said"].endswith("missing")]
    if missing:
        pytest.skip(" and ".join(missing))
    assert finished.returncode == 0, finished.stdout
    (wanted,) = {frozenset(numbers) for numbers in listed() if number in numbers}
    for outcome in outcomes:
        assert {row["number"] for row in outcome["rows"]} == wanted
    written = {int(line.split("|")[1]) for line in results.read_text().splitlines() if re.match(r"\| \d", line)}
    assert written == wanted


def test_rows_that_are_missed_and_programs_that_fail_are_in_the_table(tmp_path: Path) -> None:
    """What was measured is not run again; what failed is."""
    missed = {"number": 5, "what": "a ratio", "figure": 0.5, "bar": 0.93, "is_upper_bound": False}
    common = {"seconds": 60.0, "date": "today", "commit": "abc"}
    outcomes = [
        {"program": "ranks.py", "exit_code": 0, "said": "", "rows": [missed], **common},
        {"program": "memory.py", "exit_code": 7, "said": "it broke", "rows": [], **common},
    ]
    code = (
        "import sys, json; sys.path.insert(0, 'benchmarks'); from pathlib import Path; import run_all\n"
        "outcomes = run_all.read_outcomes(Path(sys.argv[1]))\n"
        "print(run_all.document(outcomes)); print([each.name for each in run_all.choose((), outcomes)])"
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(outcome) + "\n" for outcome in outcomes))
    finished = run_python("-c", code, path, env=environment())
    assert finished.returncode == 0, finished.stderr
    assert "| 5 | a ratio | at least 0.93 | 0.500 |  |  | **MISSED** |  |" in finished.stdout
    assert "| `memory.py` | 7, 8 | today | abc | 1.0 | **FAILED** with exit code 7: it broke |" in finished.stdout
    to_run = finished.stdout.splitlines()[-1]
    assert "memory.py" in to_run and "ranks.py" not in to_run
