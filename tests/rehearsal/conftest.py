"""A cluster for each test that asks for one, the store that is trained on, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.rehearsal.cluster import Cluster
from tests.rehearsal.privacy import find_obstacle, go_private
from tests.rehearsal.run import Workshop, make_workshop


@dataclass
class Programme:
    """What was rehearsed, how many seconds it took, and how far the losses were from those of one process."""

    rows: list[tuple[str, float, float | None]] = field(default_factory=list)

    def table(self) -> list[str]:
        width = max(len(what) for what, _, _ in self.rows)
        lines = [f"{'':{width}}  seconds  largest relative difference of losses"]
        for what, seconds, difference in self.rows:
            told = "" if difference is None else f"{difference:.1e}"
            lines.append(f"{what:{width}}  {seconds:7.1f}  {told}")
        total = sum(seconds for _, seconds, _ in self.rows)
        return [*lines, f"{'together':{width}}  {total:7.1f}"]


_PROGRAMME = pytest.StashKey[Programme]()


@dataclass
class Rehearsed:
    """What the running test tells of itself for the table."""

    what: str
    difference: float | None = None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    programme = config.stash.get(_PROGRAMME, Programme())
    if programme.rows:
        terminalreporter.section("rehearsed")
        for line in programme.table():
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to the report of a failure what the pods have said."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(cluster, Cluster):
        report.sections.append(("pods", cluster.describe()))
    return report


@pytest.fixture(scope="session")
def privacy() -> None:
    obstacle = find_obstacle()
    if obstacle is not None:
        pytest.skip(f"a cluster in network namespaces {obstacle}")
    go_private()


@pytest.fixture
def cluster(privacy: None, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def reference(privacy: None, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where the store was made, and where one process has trained on it."""
    workshop = make_workshop(tmp_path_factory.mktemp("reference"))
    workshop.drumline("prepare", "config.yaml", "--processes", "1")
    workshop.drumline("train", "config.yaml", "distribution.backend=single")
    return workshop


@pytest.fixture
def workshop(reference: Workshop, tmp_path: Path) -> Workshop:
    """A folder like it, without a run."""
    return make_workshop(tmp_path / "workshop", reference.directory / "data")


@pytest.fixture
def rehearsed(request: pytest.FixtureRequest) -> Iterator[Rehearsed]:
    row = Rehearsed(request.node.name.removeprefix("test_").replace("_", " "))
    began = time.monotonic()
    yield row
    programme = request.config.stash.setdefault(_PROGRAMME, Programme())
    programme.rows.append((row.what, time.monotonic() - began, row.difference))
