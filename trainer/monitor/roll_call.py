"""Who did not arrive: from the ranks' last reports to a verdict in one line. Pure: no clock, no thread, no socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Where an update stands, in order. Between the third and the fourth all ranks meet.
STAGES = ("waiting for its batch", "computing", "waiting for the other ranks", "updating")

# A rank reports once a second: one that has missed several is a suspect, though not yet counted as lost.
_QUIET_SECONDS = 3.5
# Its place is read once a second and reported once a second: one that has just made progress may be further by now.
_SETTLED_SECONDS = 3.0
_MOST_GROUPS = 8


@dataclass(frozen=True)
class Report:
    """What a rank last said of itself.

    number, phase:   how many phases it has begun, and the name of the last
    seconds, limit:  since it last made progress, and how long that may take
    step, stage:     where it stands in the phase; -1 and "" where it does not say
    has_moved:       whether it got there in this phase, or stands where an earlier one has left it
    note:            what else is known, like the line of code where its main thread is
    silent_seconds:  since it was last heard of
    who:             its process and machine
    """

    rank: int
    number: int
    phase: str
    seconds: float
    limit: float
    step: int = -1
    stage: str = ""
    note: str = ""
    silent_seconds: float = 0.0
    has_moved: bool = True
    who: str = ""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return f"{self.phase} (step {self.step}, {self.stage})" if self.stage and self.has_moved else self.phase


@dataclass(frozen=True)
class Verdict:
    """That the run hangs: the ranks for which the others wait (none where nobody is behind), and what to say of it."""

    ranks: tuple[int, ...]
    line: str


def roll_call(reports: Sequence[Report], num_ranks: int, silence_seconds: float) -> Verdict | None:
    """The verdict where the run hangs, otherwise None.

    `reports` are of the ranks that have not ended well. A rank is missing when it was not heard of for `silence_seconds`,
    or when it stands behind the foremost and exceeds its limit. A rank that waits for others may do so as long as any of
    them may take.
    """
    quiet_seconds = min(_QUIET_SECONDS, silence_seconds)
    lost = [report for report in reports if report.silent_seconds > silence_seconds]
    if lost:
        return _verdict(lost, reports, num_ranks, quiet_seconds)
    foremost = max((_order(report) for report in reports), default=None)
    behind = [report for report in reports if _order(report) != foremost]
    longest = max((report.limit for report in reports), default=0.0)
    is_settled = len(reports) == 1 or all(
        report.seconds >= _SETTLED_SECONDS or report.silent_seconds > quiet_seconds for report in reports
    )
    grace = 0.0 if is_settled else _SETTLED_SECONDS
    too_long = any(report.seconds > report.limit + grace for report in behind or reports)
    if not too_long and not any(report.seconds > longest + grace for report in reports):
        return None
    missing = [report for report in reports if report in behind or report.silent_seconds > quiet_seconds]
    return _verdict(missing, reports, num_ranks, quiet_seconds)


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0, 2-5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    names = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"


def _order(report: Report) -> tuple[int, int, int]:
    """Earlier places are less. A stage that is not known stands before all others of its step."""
    return report.number, report.step, STAGES.index(report.stage) if report.stage in STAGES else -1


def _verdict(missing: Sequence[Report], reports: Sequence[Report], num_ranks: int, quiet_seconds: float) -> Verdict:
    if num_ranks == 1:
        return Verdict((), f"hang: no progress in {_describe(reports[0], quiet_seconds)}")
    if not missing:
        return Verdict((), f"hang: no rank of {num_ranks} is behind the others: {_list(reports, quiet_seconds)}")
    ranks = tuple(sorted(report.rank for report in missing))
    line = f"hang: of {num_ranks} ranks {len(ranks)} did not arrive: {_list(missing, quiet_seconds)}"
    others = [report for report in reports if report not in missing]
    if others:
        foremost = max(others, key=_order)
        line += f"; the others: {foremost.place} for {foremost.seconds:.0f} s"
    return Verdict(ranks, line)


def _list(reports: Sequence[Report], quiet_seconds: float) -> str:
    """Ranks of which the same is to be said stand together."""
    groups: dict[tuple[str, str, bool], list[Report]] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        key = (report.place, report.note, report.silent_seconds > quiet_seconds)
        groups.setdefault(key, []).append(report)
    texts = []
    for group in groups.values():
        longest = max(group, key=lambda report: report.seconds)
        who = f" ({group[0].who})" if len(group) == 1 and group[0].who else ""
        texts.append(f"{name_ranks([report.rank for report in group])}{who}: {_describe(longest, quiet_seconds)}")
    more = [f"{len(texts) - _MOST_GROUPS} groups more"] if len(texts) > _MOST_GROUPS else []
    return "; ".join(texts[:_MOST_GROUPS] + more)


def _describe(report: Report, quiet_seconds: float) -> str:
    text = f"{report.place} for {report.seconds:.0f} s"
    if report.silent_seconds > quiet_seconds:
        text = f"not heard of for {report.silent_seconds:.0f} s, last in {report.place}"
    elif report.seconds > report.limit:
        text += f", limit {report.limit:.0f} s"
    return f"{text}, {report.note}" if report.note else text
