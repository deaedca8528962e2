"""A figure held against its bar, as every benchmark reports it: a line on the terminal, and a line of JSON for
`benchmarks/run_all.py`, which makes the table of RESULTS.md of them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure. Ratios are medians of paired rounds; `lowest` and `highest` are those of the rounds.

    number:   the row of the table in RESULTS.md that it belongs to
    what:     what was measured, with its unit where it is no ratio
    control:  the median ratio of two contestants that are the same: what the measurement itself is worth; None for counts
    note:     the figures that the ratio comes from
    """

    number: int
    what: str
    figure: float
    bar: float
    is_upper_bound: bool
    lowest: float | None = None
    highest: float | None = None
    control: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool:
        return self.figure <= self.bar if self.is_upper_bound else self.figure >= self.bar


def at_most(number: int, what: str, bar: float, ratios: Sequence[float], control: float | None = None, note: str = "") -> Row:
    return _of_ratios(number, what, bar, True, ratios, control, note)


def at_least(number: int, what: str, bar: float, ratios: Sequence[float], control: float | None = None, note: str = "") -> Row:
    return _of_ratios(number, what, bar, False, ratios, control, note)


def _of_ratios(
    number: int, what: str, bar: float, is_upper_bound: bool, ratios: Sequence[float], control: float | None, note: str
) -> Row:
    return Row(number, what, statistics.median(ratios), bar, is_upper_bound, min(ratios), max(ratios), control, note)


def paired(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Prints the rows; adds them to the file `path`, a JSON object a line, where one is given."""
    for row in rows:
        print(text_of(row), flush=True)
    if path is not None:
        with path.open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def text_of(row: Row) -> str:
    bound = "at most" if row.is_upper_bound else "at least"
    spread = "" if row.lowest is None else f" ({row.lowest:.3f} ... {row.highest:.3f})"
    control = "" if row.control is None else f", control {row.control:.3f}"
    verdict = "met" if row.is_met else "MISSED"
    note = f"; {row.note}" if row.note else ""
    return f"row {row.number}: {row.what}: {row.figure:.3f}{spread}{control}, bar {bound} {row.bar:g}: {verdict}{note}"
