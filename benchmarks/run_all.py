"""Runs every benchmark that has a bar, and writes RESULTS.md: each figure beside its bar, with the machine and the versions.

    python benchmarks/run_all.py [--only 1,4] [--rounds N] [--small] [--merge] [--peer-python PYTHON] [--rows FILE]
                                 [--results FILE]

What each program reported is kept in the file `--rows`, a JSON object a program. With `--merge` the programs whose rows are
there already are not run again, unless `--only` names one of their rows: so a run that was broken off goes on, and single rows
are measured anew. What is said of rows that fall short stands in MISSED.md, which a person writes; it comes below the table.

Exits with 1 where a program failed; a row that falls short is no failure.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rows import Row, read_rows

from trainer.models.instructions import cpu_multiplies

HERE = Path(__file__).resolve().parent
PACKAGES = ("tensorflow", "tensorflow-cpu", "horovod", "torch", "transformers", "datasets")


@dataclass(frozen=True)
class Program:
    """`numbers` are the rows that it reports; `minutes` what it takes on two idle cores; whether it runs a peer in a Python of
    its own."""

    file: str
    numbers: tuple[int, ...]
    minutes: int
    arguments: tuple[str, ...] = ()
    has_peer_python: bool = False

    @property
    def name(self) -> str:
        return " ".join([self.file, *self.arguments])


PROGRAMS = (
    Program("peers.py", (1, 2, 3), 35, ("--precision", "float32")),
    Program("peers.py", (1, 2, 3), 25, ("--precision", "bfloat16")),
    Program("step_time.py", (3, 4), 6, ("--precision", "float32")),
    Program("step_time.py", (3, 4), 5, ("--precision", "bfloat16")),
    Program("ranks.py", (5,), 20),
    Program("wire_bytes.py", (6,), 5),
    Program("memory.py", (7, 8), 20),
    Program("sharded_optimizer.py", (9,), 10),
    Program("prepare_speed.py", (10,), 10, has_peer_python=True),
    Program("input_pipeline.py", (11,), 5),
    Program("start_up.py", (12, 13), 8),
    Program("resident_memory.py", (14,), 8),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a program: its rows, its exit code, and the last line it printed; `commit` is what it measured."""

    program: str
    exit_code: int
    seconds: float
    date: str
    commit: str
    said: str
    rows: tuple[Row, ...]

    @property
    def is_measured(self) -> bool:
        return self.exit_code == 0 and bool(self.rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_numbers, default=(), metavar="N,N", help="the programs that report these rows")
    parser.add_argument("--rounds", type=int, help="of each program, instead of its own number")
    parser.add_argument("--small", action="store_true", help="the tiny form of each, to see whether it works")
    parser.add_argument("--merge", action="store_true", help="keep what the file of rows has")
    parser.add_argument("--peer-python", help="a Python that has `datasets`, for row 10")
    parser.add_argument("--rows", type=Path, default=HERE.parent / "build/benchmarks.jsonl")
    parser.add_argument("--results", type=Path, default=HERE / "RESULTS.md")
    arguments = parser.parse_args()
    options = [*(["--rounds", f"{arguments.rounds}"] if arguments.rounds else []), *(["--small"] if arguments.small else [])]
    outcomes = read_outcomes(arguments.rows) if arguments.merge and arguments.rows.exists() else {}
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    chosen = choose(arguments.only, outcomes)
    print(f"{len(chosen)} programs, about {sum(program.minutes for program in chosen)} minutes on two idle cores", flush=True)
    for program in chosen:
        peer = ["--peer-python", arguments.peer_python] if program.has_peer_python and arguments.peer_python else []
        outcomes[program.name] = run(program, [*options, *peer])
        write_outcomes(arguments.rows, outcomes)
        arguments.results.write_text(document(outcomes))
    arguments.results.write_text(document(outcomes))  # also where MISSED.md alone has changed
    return int(any(outcomes[program.name].exit_code for program in chosen))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def choose(only: Sequence[int], outcomes: Mapping[str, Outcome]) -> list[Program]:
    if only:
        return [program for program in PROGRAMS if set(only) & set(program.numbers)]
    return [each for each in PROGRAMS if each.name not in outcomes or not outcomes[each.name].is_measured]


def run(program: Program, options: Sequence[str]) -> Outcome:
    print(f"\n{program.name}", flush=True)
    date = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    if not (HERE / program.file).exists():
        return Outcome(program.name, 2, 0.0, date, commit(), f"benchmarks/{program.file} is missing", ())
    began, said = time.time(), ""
    with tempfile.TemporaryDirectory(prefix="drumline-benchmark-") as directory:
        rows = Path(directory) / "rows.jsonl"
        command = [sys.executable, str(HERE / program.file), *program.arguments, *options, "--rows", str(rows)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                said = line.strip() or said
        found = tuple(read_rows(rows)) if rows.exists() else ()
    return Outcome(program.name, process.returncode, time.time() - began, date, commit(), said, found)


def read_outcomes(path: Path) -> dict[str, Outcome]:
    outcomes = {}
    for values in map(json.loads, path.read_text().splitlines()):
        outcomes[values["program"]] = Outcome(**{**values, "rows": tuple(Row(**row) for row in values["rows"])})
    return outcomes


def write_outcomes(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    path.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes.values()))


def document(outcomes: Mapping[str, Outcome]) -> str:
    lines = [
        "# What was measured",
        "",
        f"`{' '.join(['python', *sys.argv])}` wrote this, on {machine()}; {versions()}.",
        "A ratio is the median of those of its rounds, whose lowest and highest are the spread; the control is the same "
        "contestant against itself.",
        "",
        "| row | what | bar | figure | spread | control | | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = [row for program in PROGRAMS if program.name in outcomes for row in outcomes[program.name].rows]
    lines += [cells(row) for row in sorted(measured, key=lambda row: row.number)]
    lines += ["", "| program | rows | measured | commit | minutes | |", "|---|---|---|---|---|---|"]
    lines += [program_cells(program, outcomes.get(program.name)) for program in PROGRAMS]
    missed = HERE / "MISSED.md"
    if missed.exists():
        lines += ["", "## What falls short", "", missed.read_text().strip()]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> str:
    bar = f"{'at most' if row.is_upper_bound else 'at least'} {row.bar:g}"
    spread = "" if row.lowest is None else f"{row.lowest:.3f} to {row.highest:.3f}"
    control = "" if row.control is None else f"{row.control:.3f}"
    figure = f"{row.figure:.3f}" if row.figure == 0 or abs(row.figure) >= 0.001 else f"{row.figure:.1e}"
    verdict = "met" if row.is_met else "**MISSED**"
    return table_line(f"{row.number}", row.what, bar, figure, spread, control, verdict, row.note)


def program_cells(program: Program, outcome: Outcome | None) -> str:
    numbers = ", ".join(map(str, program.numbers))
    if outcome is None:
        return table_line(f"`{program.name}`", numbers, "", "", "", "not run")
    state = ""
    if outcome.exit_code:
        state = f"**FAILED** with exit code {outcome.exit_code}: {outcome.said}"
    elif not outcome.rows:
        state = f"no rows: {outcome.said}"
    minutes = f"{outcome.seconds / 60:.1f}"
    return table_line(f"`{program.name}`", numbers, outcome.date, outcome.commit, minutes, state)


def table_line(*texts: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def commit() -> str:
    """The commit of this clone; `+` where files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--abbrev=8", "--dirty=+", "--exclude=*"], cwd=HERE, capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def machine() -> str:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    narrow = "with" if cpu_multiplies("bfloat16") else "without"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    processor = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores of {processor}, {narrow} instructions for bfloat16, {memory:.0f} GiB of memory"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
