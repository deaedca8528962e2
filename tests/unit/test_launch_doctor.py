"""`drumline doctor`, a check at a time: each names what is wrong here, and those that find nothing say what is right."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import cgroups
from launch.all_reduce import Measurement
from launch.doctor import _compare_clocks, _resolve, run
from launch.health import Health
from launch.plan import Machine
from launch.surroundings import Surroundings
from tests.training import ROOT, run_command, training_config, write_texts
from trainer import preflight
from trainer.config import Config
from trainer.data.prepare import prepare
from trainer.errors import BackendError, DataError, DrumlineError, HangDetected, Stopped
from trainer.run_directory import RunDirectory

MIB = 2**20
CPU, TWO_GPUS = Machine(num_cores=2), Machine(num_cores=8, gpus=("0", "1"))
HOLDER = """
import sys
from pathlib import Path
from trainer.checkpoint_lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1]), "run first in runs/first"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("doctor")
    write_texts(directory, 5_000)
    prepare(training_config(directory, "prepare"), num_processes=1)
    return directory


@pytest.fixture
def directory(prepared: Path, tmp_path: Path) -> Path:
    """Text and a store of its own, which may be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(num_bytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(disk)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def config_of(directory: Path, **sections: Any) -> Config:
    """The configuration that the store in `directory` was made with, as its copy has it."""
    return training_config(directory, "run", **sections)


def as_prepared(prepared: Path, directory: Path, **sections: Any) -> Config:
    """The same with the store of `directory`, of which the manifest remembers where its texts were."""
    config = config_of(prepared, **sections)
    return config.model_copy(update={"data": config.data.model_copy(update={"store": str(directory / "store")})})


def part_of(directory: Path) -> Path:
    return max((directory / "store").rglob("*.arrow"), key=lambda path: path.stat().st_size)


# How it is told.


def test_every_check_is_made_and_told_in_one_line_and_the_worst_exit_code_is_the_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(error: Exception) -> Callable[[], str]:
        def check() -> str:
            raise error

        return check

    checks = [
        ("first", lambda: "fine"),
        ("second", fails(Stopped("later"))),
        ("third", fails(UserWarning("slow"))),
        ("fourth", fails(DataError("one\ntwo"))),
        ("fifth", lambda: "fine too"),
    ]
    assert run(checks) == 2
    assert capsys.readouterr().out.splitlines() == [
        "ok    first: fine",
        "FAIL  second: later",
        "note  third: slow",
        "FAIL  fourth: one; two",
        "ok    fifth: fine too",
    ]
    assert run([checks[0], checks[2]]) == 0
    assert run([("one", fails(Stopped("")))]) == 75
    assert run([("one", fails(Stopped(""))), ("two", fails(HangDetected("")))]) == 70


def test_a_fault_of_ours_shows_where_and_the_others_are_told_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([("broken", lambda: str(1 // 0)), ("other", lambda: "fine")]) == DrumlineError.exit_code
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1] == "ok    other: fine"
    assert "ZeroDivisionError" in printed.err


# The machine.


def test_limits_of_containers_of_version_2_are_those_of_the_group_and_all_above_it(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pods/one\n")
    write(tmp_path / "sys/fs/cgroup/pods/memory.max", "3000\n")
    write(tmp_path / "sys/fs/cgroup/pods/one/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/pods/one/cpu.max", "150000 100000\n")
    write(tmp_path / "sys/fs/cgroup/pods/cpu.max", "max 100000\n")
    write(tmp_path / "sys/fs/cgroup/pods/pids.max", "77\n")
    assert (cgroups.memory_bytes(tmp_path), cgroups.cores(tmp_path), cgroups.processes(tmp_path)) == (3000, 1.5, 77)


def test_limits_of_containers_of_version_1_are_found_where_the_container_sees_them(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert (cgroups.memory_bytes(tmp_path), cgroups.cores(tmp_path), cgroups.processes(tmp_path)) == (3000, 0.5, None)


def test_without_limits_there_are_none(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/\n1:cpu:/\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert (cgroups.memory_bytes(tmp_path), cgroups.cores(tmp_path)) == (None, None)
    assert cgroups.memory_bytes(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("driver", "cuda", "seen", "expected"),
    [
        ("535.104.05", "12.5.1", 2, "2 x NVIDIA A100, driver 535.104.05, all seen by TensorFlow (CUDA 12.5.1)"),
        ("470.57.02", "12.5.1", 2, "driver 470.57.02 is too old for CUDA 12.5.1"),
        ("535.104.05", "12.5.1", 0, "TensorFlow sees 0 of 2"),
        ("535.104.05", None, 0, "built without CUDA"),
    ],
)
def test_gpus_are_held_against_the_driver_and_tensorflow(
    driver: str, cuda: str | None, seen: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(tmp_path, monkeypatch, f"printf 'NVIDIA A100, 40960, {driver}\\n%.0s' 1 2")
    health = surveyed(TWO_GPUS, tensorflow={"version": "2.21.0", "cuda": cuda, "gpus": ["GPU"] * seen})
    assert expected in told(health.accelerators)
    assert health.replica_memory(2) == (40960 * MIB, "a GPU")


def test_a_driver_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed: no driver is running'; exit 9")
    health = surveyed(TWO_GPUS, tensorflow={"version": "2.21.0", "cuda": "12.5.1", "gpus": []})
    assert "nvidia-smi fails with exit code 9 (NVIDIA-SMI has failed: no driver" in told(health.accelerators)


def test_gpus_that_are_asked_for_and_not_there_are_named() -> None:
    health = surveyed(TWO_GPUS, tensorflow={"version": "2.21.0", "cuda": "12.5.1", "gpus": []})
    if health.gpus:
        pytest.skip("this machine has GPUs")
    assert "CUDA_VISIBLE_DEVICES names 0, 1, and there is no /dev/nvidia*" in told(health.accelerators)
    assert told(surveyed(CPU, tensorflow={}).accelerators) == "none; training on 2 cores"


def test_horovod_is_a_fault_only_where_it_is_needed() -> None:
    broken = surveyed(CPU, tensorflow={}, horovod={"problem": "ImportError: undefined symbol"})
    with pytest.raises(BackendError, match=r"undefined symbol, and the backend is horovod.*make horovod"):
        broken.horovod("the backend is horovod")
    with pytest.raises(UserWarning, match="does not load"):
        broken.horovod(None)
    assert "nothing here needs it" in surveyed(CPU, horovod={"problem": "not installed"}).horovod(None)
    without_nccl = surveyed(TWO_GPUS, horovod={"version": "0.28.1", "built": ["Gloo"]})
    with pytest.raises(UserWarning, match="without NCCL"):
        without_nccl.horovod("the backend is horovod")


def test_little_shared_memory_stops_a_run_on_several_gpus_alone(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64 * MIB)
    with pytest.raises(BackendError, match=r"64 MiB.*too little for NCCL with 2 ranks.*--shm-size"):
        Health(TWO_GPUS).shared_memory(2, disk)
    with pytest.raises(UserWarning, match="64 MiB"):
        Health(CPU).shared_memory(2, disk)
    assert "free" in Health(CPU).shared_memory(2, Path("/"))


def test_a_low_limit_of_open_files_is_noted() -> None:
    program = (
        "from launch.health import Health; from launch.plan import Machine\n"
        "try: Health(Machine(1)).limits()\n"
        "except UserWarning as warning: print(warning)"
    )
    done = run_command(["bash", "-c", f"ulimit -n 256; exec {sys.executable} -c '{program}'"])
    assert "256 open files" in done.stdout and "raise ulimit -n" in done.stdout, done.stderr


# The gang.


def test_names_that_do_not_resolve_are_named_and_may_later() -> None:
    with pytest.raises(Stopped, match=r"does not resolve after 0 s: nowhere\.invalid \(.+\); see that these workers run"):
        _resolve(gang("localhost", "nowhere.invalid"), 0.0)


def test_names_that_resolve_are_told_with_their_addresses() -> None:
    assert _resolve(gang("127.0.0.1", "127.0.0.2"), 0.0) == (
        "2 resolve, this is 0 (--index): 127.0.0.1 127.0.0.1, 127.0.0.2 127.0.0.2"
    )


def test_a_clock_that_is_wrong_is_noted_with_its_rank() -> None:
    def measured(*offsets: float) -> Measurement:
        return Measurement("horovod", "Gloo", 3, 1, 1.0, 1.0, offsets)

    assert _compare_clocks(measured(0.0, 0.02, -0.3)) == "within 0.300 s of rank 0's"
    with pytest.raises(UserWarning, match=r"that of rank 1 is 40\.0 s behind that of rank 0"):
        _compare_clocks(measured(0.0, -40.0, 2.0))


# The configuration.


def test_a_whole_store_is_told_with_what_was_compared(prepared: Path) -> None:
    assert "sizes, counts and hashes are right" in preflight.check_store(config_of(prepared))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: shutil.rmtree(path.parents[0]), r"no such file.*run: drumline prepare"),
        (lambda path: os.truncate(path, path.stat().st_size - 100), r"the store's manifest says .*drumline prepare"),
        (lambda path: overwrite(path), r"contents have changed .*drumline prepare"),
    ],
)
def test_a_store_that_is_not_whole_is_named(
    damage: Callable[[Path], None], expected: str, prepared: Path, directory: Path
) -> None:
    damage(part_of(directory))
    with pytest.raises(DataError, match=expected):
        preflight.check_store(as_prepared(prepared, directory))


def test_a_store_of_other_settings_is_named(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"was prepared with data\.format \"lines\", and it is now \"text\""):
        preflight.check_store(config_of(prepared, data={"format": "text"}))


def test_another_tokenizer_than_the_stores_is_named(prepared: Path, directory: Path) -> None:
    tokenizer = directory / "store/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"e"', '"\N{SNOWMAN}"', 1))
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        preflight.check_store(as_prepared(prepared, directory))


def test_a_batch_is_held_against_the_replicas(prepared: Path) -> None:
    assert preflight.check_batch(config_of(prepared), 2) == "8 sequences = 2 replicas x 1 micro-batch x 4 sequences"
    assert "expected a multiple of the number of replicas" in told(lambda: preflight.check_batch(config_of(prepared), 3))
    assert "not known" in told(lambda: preflight.check_batch(config_of(prepared), None))


def test_memory_is_held_against_the_estimate(prepared: Path) -> None:
    config = config_of(prepared)

    def check(num_bytes: int) -> str:
        return told(lambda: preflight.check_memory(config, 2, lambda: (num_bytes, "a GPU")))

    # 34 thousand parameters of 16 bytes alone are more than half a MiB.
    assert "take a smaller model, or more memory" in check(MIB // 4)
    assert "take a smaller train.micro_batch_size" in check(3 * MIB // 4)
    assert check(2**33).endswith("a replica of 8.0 GiB (a GPU)")


def test_memory_and_space_need_to_know_the_vocabulary(prepared: Path, tmp_path: Path) -> None:
    config = config_of(prepared, data={"store": str(tmp_path / "none")})
    assert "after `drumline prepare`" in told(lambda: preflight.check_memory(config, 1, lambda: (1, "a GPU")))
    assert "after `drumline prepare`" in told(lambda: preflight.check_space(config))


def test_the_run_directory_is_tried_and_left_as_it_was(prepared: Path, tmp_path: Path) -> None:
    run_directory = RunDirectory(tmp_path / "runs/new")
    assert "written, renamed and brought to disk" in preflight.check_run_directory(run_directory)
    assert list((tmp_path / "runs").iterdir()) == []
    run_directory.path.mkdir()
    assert str(run_directory.path) in preflight.check_run_directory(run_directory)
    assert list(run_directory.path.iterdir()) == []


def test_a_run_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert "cannot be written" in told(lambda: preflight.check_run_directory(RunDirectory(tmp_path / "runs/new")))


def test_checkpoints_are_tried_in_a_folder_and_behind_a_url(prepared: Path, tmp_path: Path) -> None:
    folder = config_of(prepared, checkpoint={"directory": str(tmp_path / "checkpoints")})
    assert "no other run saves there" in preflight.check_checkpoints(folder)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {".lock"}
    remote = config_of(prepared, checkpoint={"directory": "memory://doctor/checkpoints"})
    assert "no other run saves there" in preflight.check_checkpoints(remote)
    assert "cannot be asked for behind a URL" in told(lambda: preflight.check_space(remote))


def test_checkpoints_of_a_new_run_lie_in_its_folder_which_is_not_made(prepared: Path, tmp_path: Path) -> None:
    config = config_of(prepared, run={"directory": str(tmp_path)})
    assert preflight.check_checkpoints(config).endswith("new with this run")
    assert list(tmp_path.iterdir()) == []


def test_who_saves_there_already_is_named(prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        said = told(lambda: preflight.check_checkpoints(config_of(prepared, checkpoint={"directory": str(tmp_path)})))
        assert f"is in use by run first in runs/first (host {os.uname().nodename}, process {holder.pid}" in said
        holder.communicate()


def test_a_disk_without_room_for_the_checkpoints_is_named(prepared: Path, small_disk: Callable[[int], Path]) -> None:
    config = config_of(prepared, run={"directory": str(small_disk(MIB // 2))})
    # Of 20 steps two are saved, 12 bytes for each of 34 thousand parameters.
    said = told(lambda: preflight.check_space(config))
    assert "2 x 4" in said and "512 KiB free; make room for" in said


def test_packages_of_another_version_are_named(tmp_path: Path) -> None:
    write(tmp_path / "keras-2.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: keras\nVersion: 2.0.0\n")
    program = "from trainer import preflight; print(preflight.check_packages())"
    changed = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = run_command([sys.executable, "-c", program], env=changed)
    assert "keras is 2.0.0, expected <4,>=3.15" in done.stderr
    assert "are of the versions that are required" in preflight.check_packages()


def told(check: Callable[[], str]) -> str:
    """What a check says, whether it finds something wrong or not."""
    try:
        return check()
    except (DrumlineError, UserWarning) as error:
        return str(error)


def surveyed(machine: Machine, **survey: dict[str, Any]) -> Health:
    """A machine on which TensorFlow and Horovod say this of themselves."""
    health = Health(machine)
    vars(health)["survey"] = survey
    return health


def install_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts an `nvidia-smi` in front of what the machine has."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))


def gang(*peers: str) -> Surroundings:
    return Surroundings(0, peers, 1, "test", 29400, "--index")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def overwrite(path: Path) -> None:
    """Changes a byte of the tokens, which are most of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
