"""What a container may use of its machine: limits of control groups, of version 2 and of version 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Version 1 has no word for "no limit": the largest number of pages takes its place.
_NO_MEMORY_LIMIT = 1 << 60


def memory_bytes(root: Path = Path("/")) -> int | None:
    """How much memory this process and its neighbours in the group may have; None without a limit."""
    limits = [*_numbers(root, "", "memory.max"), *_numbers(root, "memory", "memory.limit_in_bytes")]
    return min((limit for (limit, *_) in limits if limit < _NO_MEMORY_LIMIT), default=None)


def cores(root: Path = Path("/")) -> float | None:
    """How many cores' time they may use; None without a limit."""
    shares = [quota / period for quota, period, *_ in _numbers(root, "", "cpu.max")]
    quotas = list(_numbers(root, "cpu", "cpu.cfs_quota_us"))
    periods = list(_numbers(root, "cpu", "cpu.cfs_period_us"))
    shares += [quota / period for (quota, *_), (period, *_) in zip(quotas, periods, strict=False) if quota > 0]
    return min(shares, default=None)


def processes(root: Path = Path("/")) -> int | None:
    """How many processes and threads they may have; None without a limit."""
    limits = [*_numbers(root, "", "pids.max"), *_numbers(root, "pids", "pids.max")]
    return min((limit for (limit, *_) in limits), default=None)


def _numbers(root: Path, controller: str, name: str) -> Iterator[list[int]]:
    """The numbers in a file of this process's group and of those above it, as far as it is there and does not say `max`."""
    for folder in _groups(root, controller):
        try:
            words = (folder / name).read_text().split()
        except OSError:
            continue
        if words and words[0] != "max":
            yield [int(word) for word in words]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and those above it; `controller` is "" for version 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / controllers
        folder = mounted / group.lstrip("/")
        # In a container the group is often mounted where the root would be, and its name leads nowhere.
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(mounted))
