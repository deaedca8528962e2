"""Where a worker finds its place: flags, Kubernetes, Slurm, its host name; and what is said where it finds none."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from launch import cgroups
from launch.machine import find_machine
from launch.surroundings import Flags, Surroundings, find_surroundings, read_secret
from trainer.errors import UserError

PEERS = {"DRUMLINE_PEERS": "demo-0.demo,demo-1.demo,demo-2.demo"}


def find(environment: Mapping[str, str], hostname: str = "elsewhere", num_gpus: int = 0, **flags: object) -> Surroundings:
    return find_surroundings(environment, hostname, Flags(**flags), num_gpus)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "hostname", "flags", "index"),
    [
        ({"JOB_COMPLETION_INDEX": "2"}, "demo-2", {}, 2),
        ({"JOB_COMPLETION_INDEX": "2"}, "demo-2", {"index": 1}, 1),
        ({"SLURM_NODEID": "1"}, "node07", {}, 1),
        ({}, "demo-1", {}, 1),
        ({}, "demo-1.demo.namespace.svc.cluster.local", {}, 1),
        ({"JOB_COMPLETION_INDEX": "0", "SLURM_NODEID": "1"}, "demo-2", {}, 0),
    ],
)
def test_the_number_of_a_worker(environment: dict[str, str], hostname: str, flags: dict[str, int], index: int) -> None:
    assert find(PEERS | environment, hostname, **flags).index == index


def test_an_mpijob_is_known_by_its_host_names_the_launcher_first() -> None:
    peers = {"DRUMLINE_PEERS": "run-launcher.run,run-worker-0.run,run-worker-1.run"}
    assert [find(peers, host).index for host in ("run-launcher", "run-worker-0", "run-worker-1")] == [0, 1, 2]


def test_ranks_are_counted_over_all_workers() -> None:
    here = find({**PEERS, "DRUMLINE_RANKS": "4"}, index=2)
    assert (here.num_workers, here.num_ranks, here.first_rank, here.host) == (3, 12, 8, "demo-2.demo")


@pytest.mark.parametrize(
    ("environment", "flags", "ranks"),
    [
        ({}, {}, 1),
        ({"SLURM_GPUS_ON_NODE": "8"}, {}, 8),
        ({"SLURM_GPUS_ON_NODE": "0"}, {}, 1),
        ({"DRUMLINE_RANKS": "2", "SLURM_GPUS_ON_NODE": "8"}, {}, 2),
        ({"DRUMLINE_RANKS": "2"}, {"ranks": 3}, 3),
        ({}, {"num_gpus": 4}, 4),
    ],
)
def test_ranks_on_each_worker(environment: dict[str, str], flags: dict[str, int], ranks: int) -> None:
    assert find(PEERS | environment, index=0, **flags).ranks_per_worker == ranks


def test_what_nobody_says_has_a_default() -> None:
    here = find(PEERS, index=0)
    assert (here.job, here.port) == ("drumline", 29400)


def test_jobs_of_slurm_that_share_a_machine_have_ports_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    slurm = {"SLURM_JOB_ID": "40123", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NODEID": "1"}
    here = find(slurm)
    assert (here.peers, here.index, here.job, here.port) == (("node1", "node2"), 1, "40123", 20123)
    assert find({**slurm, "DRUMLINE_PORT": "7000"}).port == 7000


def test_nodes_of_slurm_without_its_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"scontrol show hostnames node\[1-2\] failed.*give --peers instead"):
        find({"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NODEID": "1"})


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, {}, "expected --peers HOST,HOST,... or DRUMLINE_PEERS"),
        (PEERS, {}, "this host, elsewhere, is not among the peers demo-0.demo, .*expected --index N"),
        (PEERS, {"index": 3}, "worker 3 .--index.: there are 3 peers, so numbers go from 0 to 2"),
        (PEERS | {"JOB_COMPLETION_INDEX": "x"}, {}, "JOB_COMPLETION_INDEX: got 'x', expected a whole number"),
        (PEERS | {"DRUMLINE_RANKS": "0"}, {"index": 0}, "DRUMLINE_RANKS: got '0', .*at least 1"),
        (PEERS | {"DRUMLINE_PORT": "70000"}, {"index": 0}, "got 70000, expected at most 65535"),
        (PEERS, {"index": 0, "job": "two words"}, "got 'two words'"),
        ({}, {"index": 0, "peers": ("a", "", "b")}, "--peers: got '' among 3 names"),
        ({}, {"index": 0, "peers": ("a", "b", "a")}, "--peers: a is given twice"),
    ],
)
def test_what_is_missing_or_cannot_be_is_named(environment: dict[str, str], flags: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(environment, **flags)  # type: ignore[arg-type]


def test_the_secret_is_that_of_the_file_without_the_end_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"0123456789abcdef\n")
    (tmp_path / "other").write_bytes(b"fedcba9876543210")
    environment = {"DRUMLINE_SECRET_FILE": str(tmp_path / "token")}
    assert read_secret(environment, None) == b"0123456789abcdef"
    assert read_secret(environment, tmp_path / "other") == b"fedcba9876543210"


def test_a_secret_that_is_missing_or_short_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"guessable")
    with pytest.raises(UserError, match="token: got 9 bytes, expected at least 16") as caught:
        read_secret({}, tmp_path / "token")
    assert "guessable" not in str(caught.value)
    with pytest.raises(UserError, match="none cannot be read: No such file"):
        read_secret({}, tmp_path / "none")
    with pytest.raises(UserError, match="expected --secret-file FILE or DRUMLINE_SECRET_FILE"):
        read_secret({}, None)


def test_ranks_divide_the_cores_that_a_container_may_use() -> None:
    limit = cgroups.cores()
    allowed = len(os.sched_getaffinity(0))
    assert find_machine().num_cores == (allowed if limit is None else min(allowed, math.ceil(limit)))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/pod/main\n", "sys/fs/cgroup/pod/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/pod\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        ({}, None),
    ],
)
def test_a_limit_of_either_kind_of_control_group_is_found(files: dict[str, str], cores: float | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cgroups.cores(tmp_path) == cores
