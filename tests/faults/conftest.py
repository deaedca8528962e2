"""The number of rounds, a store of text, and the table of what was measured, printed when all faults are over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.training import TEXT, training_config, write_texts
from trainer.data.prepare import prepare

# `make faults` without ROUNDS.
DEFAULT_ROUNDS = 10


@dataclass
class Figures:
    """What was measured, as rows of (fault, what, value)."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, fault: str, **values: object) -> None:
        """Adds a row for each value; underscores in a name become blanks."""
        for name, value in values.items():
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            self.rows.append((fault, name.replace("_", " "), text))

    def table(self) -> list[str]:
        widths = [max(len(row[column]) for row in self.rows) for column in range(2)]
        lines, before = [], ""
        for fault, what, value in self.rows:
            lines.append(f"{fault if fault != before else '':{widths[0]}}  {what:{widths[1]}}  {value}")
            before = fault
        return lines


_FIGURES = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds",
        type=int,
        default=DEFAULT_ROUNDS,
        help="how often each fault is injected by the tests that are marked `faults`; costlier ones a share of it",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, Figures())
    if figures.rows:
        terminalreporter.section("faults injected")
        for line in figures.table():
            terminalreporter.write_line(line)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return request.config.stash.setdefault(_FIGURES, Figures())


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--rounds", default=DEFAULT_ROUNDS))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text and the store made of it. So much of it is for validation that an evaluation over all takes
    seconds: signals shall meet one."""
    directory = tmp_path_factory.mktemp("faults")
    write_texts(directory)
    validation = directory / "validation.txt"
    validation.write_text(validation.read_text() + TEXT[30_000:400_000])
    prepare(training_config(directory, "prepare"), num_processes=1)
    return directory
