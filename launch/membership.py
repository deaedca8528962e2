"""Which machines train together, of those that there are at the moment. Pure: asks no machine and starts nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from launch.plan import add_host
from trainer.config import TrainConfig, plan_batches
from trainer.errors import ConfigError

_FIRST_ABSENCE_SECONDS = 60.0
_LONGEST_ABSENCE_SECONDS = 1800.0
_FORGOTTEN_AFTER_SECONDS = 3600.0


@dataclass(frozen=True)
class Gang:
    """The machines of a run, and how many ranks each has, in the order of the ranks."""

    hosts: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        return sum(num_ranks for _, num_ranks in self.hosts)

    def __str__(self) -> str:
        """As `horovodrun -H` takes it."""
        return ",".join(f"{host}:{num_ranks}" for host, num_ranks in self.hosts)

    def fits(self, slots: Mapping[str, int]) -> bool:
        return all(num_ranks <= slots.get(host, 0) for host, num_ranks in self.hosts)


def parse_discovery(text: str) -> dict[str, int]:
    """What a discovery script prints, a line `host:slots` for each machine, in its order. Raises UserError."""
    slots: dict[str, int] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        add_host(slots, line, "--discovery", least=0)
    return slots


def possible_sizes(train: TrainConfig, least: int, most: int) -> tuple[int, ...]:
    """The numbers of ranks over which the batch divides, the largest first. Raises ConfigError where there is none."""
    sizes = []
    for size in range(most, least - 1, -1):
        try:
            plan_batches(train, size)
        except ConfigError:
            continue
        sizes.append(size)
    if not sizes:
        plan_batches(train, most)  # raises what is wrong
    return tuple(sizes)


def form_gang(
    slots: Mapping[str, int], sizes: Sequence[int], current: Gang | None = None, left_out: Collection[str] = ()
) -> Gang | None:
    """The largest gang that there are slots for; None where they do not suffice for the smallest.

    Machines in `left_out` are taken only where the others do not suffice, unless they are in the `current` gang. That one
    stays as it is where a new one would be no larger; its machines come first, so that the first rank stays where it is.
    """
    used = [host for host, _ in current.hosts] if current else []
    welcome = {host: number for host, number in slots.items() if host in used or host not in left_out}
    for offered in (welcome, slots):
        size = next((size for size in sizes if size <= sum(offered.values())), None)
        if size is None:
            continue
        if current is not None and current.size == size and current.fits(offered):
            return current
        return _fill(offered, [*(host for host in used if host in offered), *offered], size)
    return None


def describe_change(old: Gang, new: Gang | None, slots: Mapping[str, int]) -> str:
    """`workers 2 -> 1: host b is gone`."""
    before, after = dict(old.hosts), dict(new.hosts) if new else {}
    causes = [f"host {host} is gone" for host in before if not slots.get(host)]
    causes += [f"host {host} has {count(slots[host], 'slot')}" for host in before if 0 < slots.get(host, 0) < before[host]]
    causes += [f"host {host} is there" for host in after if host not in before]
    causes += [f"host {host} has {count(slots[host], 'slot')}" for host in after if before.get(host, after[host]) < after[host]]
    return f"workers {old.size} -> {new.size if new else 0}: {', '.join(causes) or 'other hosts are there'}"


def count(number: int, name: str) -> str:
    """`1 slot`, `2 slots`."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


@dataclass
class Absences:
    """Machines that are left out because their ranks failed: a minute, then two, then four, at most half an hour."""

    _failures: dict[str, tuple[int, float]] = field(default_factory=dict)

    def failed(self, host: str, now: float) -> float:
        """Notes a failure; for how many seconds the machine is left out."""
        number, last = self._failures.get(host, (0, now))
        number = 1 if now - last > _FORGOTTEN_AFTER_SECONDS else number + 1
        self._failures[host] = (number, now)
        return self._seconds(number)

    def left_out(self, now: float) -> set[str]:
        return {host for host, (number, last) in self._failures.items() if now - last < self._seconds(number)}

    def _seconds(self, number: int) -> float:
        return min(_FIRST_ABSENCE_SECONDS * 2.0 ** (number - 1), _LONGEST_ABSENCE_SECONDS)


def _fill(slots: Mapping[str, int], order: Sequence[str], size: int) -> Gang:
    hosts: dict[str, int] = {}
    for host in order:
        num_ranks = min(slots[host], size - sum(hosts.values()))
        if host not in hosts and num_ranks > 0:
            hosts[host] = num_ranks
    return Gang(tuple(hosts.items()))
