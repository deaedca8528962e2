"""`drumline doctor` from end to end: a set-up that works, with ranks that really all-reduce, and many that do not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import site
import subprocess
import sys
import time
import uuid
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from launch.machine import free_ports
from tests.training import BIN, ROOT, environment, training_config, write_config

pytestmark = pytest.mark.processes

DRUMLINE = (str(BIN / "drumline"),)
MARK = "DRUMLINE_DOCTOR_TEST"
SECONDS = 240.0
HOLDER = """
import sys
from pathlib import Path
from trainer.checkpoint_lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1]), "run first in runs/first"):
    print("locked", flush=True)
    sys.stdin.read()
"""


class Doctor:
    """One start of `drumline doctor`; `checks` has what it said of each, as (verdict, detail)."""

    def __init__(self, arguments: Sequence[str | Path], env: Mapping[str, str], program: Sequence[str] = DRUMLINE) -> None:
        command = [*program, "doctor", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self) -> Doctor:
        try:
            self.printed, self.complaints = self.process.communicate(timeout=SECONDS)
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        self.exit_code = self.process.returncode
        lines = [re.fullmatch(r"(ok   |FAIL |note ) ([^:]+): (.*)", line) for line in self.printed.splitlines()]
        assert all(lines), self.printed
        self.checks = {match[2]: (match[1].strip(), match[3]) for match in lines if match}
        return self

    @property
    def failed(self) -> dict[str, str]:
        return {name: detail for name, (verdict, detail) in self.checks.items() if verdict == "FAIL"}


def doctor(*arguments: str | Path, program: Sequence[str] = DRUMLINE, **variables: str) -> Doctor:
    return Doctor(arguments, environment(**variables), program).finish()


@pytest.fixture
def config(prepared: Path, tmp_path: Path) -> Path:
    """A run on the common store, whose folder is the test's own."""
    changed = training_config(prepared, "run", run={"directory": str(tmp_path / "runs")})
    return write_config(changed, tmp_path / "run.yaml")


# What works.


def test_without_a_configuration_the_machine_alone_is_looked_at() -> None:
    healthy = doctor()
    assert (healthy.exit_code, healthy.failed) == (0, {}), healthy.printed
    assert list(healthy.checks) == ["packages", "TensorFlow", "Horovod", "GPUs", "cores", "limits", "shared memory"]


@pytest.mark.parametrize("backend", ["horovod", "multiworker", "mirrored"])
def test_a_healthy_set_up_all_reduces_and_passes(backend: str, config: Path) -> None:
    healthy = doctor(config, f"distribution.backend={backend}", "--workers", "2")
    assert (healthy.exit_code, healthy.failed) == (0, {}), healthy.printed
    asked = ("store", "batch", "memory", "run directory", "checkpoints", "checkpoint space", "all-reduce")
    assert [name for name in healthy.checks if name in asked] == list(asked)
    verdict, detail = healthy.checks["all-reduce"]
    assert verdict == "ok"
    assert re.match(rf"2 replicas over .* \({backend}\): 16 MiB in .* ms, .* GB/s on the bus; the sum is exact", detail)


def test_one_replica_has_nothing_to_reduce(config: Path) -> None:
    assert doctor(config).checks["all-reduce"] == ("ok", "one replica has nothing to reduce; --workers N tries N")


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_a_gang_meets_and_all_reduces(backend: str, config: Path, tmp_path: Path) -> None:
    first, second = gang(config, tmp_path, f"distribution.backend={backend}", ranks=2)
    assert first.exit_code == second.exit_code == 0, first.printed + second.printed
    for each in (first, second):
        assert each.checks["all-reduce"][1].startswith("4 replicas over ")
        assert each.checks["clocks"][0] == "ok"
        assert each.checks["batch"][1] == "8 sequences = 4 replicas x 1 micro-batch x 2 sequences"
    assert "checkpoints" in first.checks and "checkpoints" not in second.checks, "the first worker writes"


# What does not: each is named, and the exit code is 2.


def test_a_mistake_in_the_configuration(config: Path) -> None:
    assert_named(doctor(config, "train.step=3"), "configuration", "train.step=3: unknown key; did you mean steps?")


def test_a_store_that_is_not_prepared(config: Path, tmp_path: Path) -> None:
    assert_named(doctor(config, f"data.store={tmp_path / 'none'}"), "store", "run: drumline prepare CONFIG")


def test_a_store_that_was_cut_short(tmp_path: Path, prepared: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(prepared / "store", store)
    part = max(store.rglob("*.arrow"), key=lambda path: path.stat().st_size)
    os.truncate(part, part.stat().st_size // 2)
    config = write_config(training_config(prepared, "run", data={"store": str(store)}), tmp_path / "run.yaml")
    assert_named(doctor(config), "store", f"{part}: has ", "the store's manifest says")


def test_a_store_of_other_settings(config: Path) -> None:
    assert_named(doctor(config, "data.format=text"), "store", "was prepared with data.format")


def test_a_batch_that_does_not_divide(config: Path) -> None:
    broken = doctor(config, "distribution.backend=multiworker", "--workers", "3")
    assert_named(broken, "batch", "train.global_batch_size: got 8", "take 6 or 9")
    assert broken.checks["all-reduce"][0] == "ok", "the others are made all the same"


def test_a_batch_that_does_not_fit_into_the_memory(config: Path) -> None:
    assert_named(doctor(config, "train.global_batch_size=100000000"), "memory", "take a smaller train.micro_batch_size")


def test_a_run_directory_that_may_not_be_written(config: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o555)
    program = (*DRUMLINE,)
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("permissions do not bind for root, and there is no setpriv to change that")
        program = ("setpriv", "--bounding-set=-dac_override", *DRUMLINE)
    assert_named(doctor(config, program=program), "run directory", f"{runs}: cannot be written", "Permission denied")


def test_a_disk_that_is_too_small(config: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(runs)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    try:
        assert_named(doctor(config), "checkpoint space", "512 KiB free; make room for")
    finally:
        subprocess.run(["umount", "--lazy", str(runs)], check=True)


def test_a_folder_of_checkpoints_in_which_another_run_saves(config: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "runs/run/checkpoints"
    command = [sys.executable, "-c", HOLDER, str(checkpoints)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        assert_named(doctor(config), "checkpoints", "is in use by run first in runs/first", f"process {holder.pid}")
        holder.communicate()


def test_checkpoints_at_a_server_that_does_not_answer(config: Path) -> None:
    pytest.importorskip("s3fs")
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    broken = doctor(config, "checkpoint.directory=s3://bucket/run", **variables)
    assert_named(broken, "checkpoints", "s3://bucket/run: cannot be written", "Could not connect to the endpoint")


def test_a_python_without_horovod(config: Path, tmp_path: Path) -> None:
    """An environment like this one, of which Horovod is left out."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if not entry.name.startswith("horovod") and entry.name != "__pycache__":
            (packages / entry.name).symlink_to(entry)
    program = (str(tmp_path / "venv/bin/python"), "-m", "trainer")
    broken = doctor(config, "distribution.backend=horovod", "--workers", "2", program=program)
    assert_named(broken, "Horovod", "not installed, and distribution.backend is horovod", "run: make horovod", others=1)
    assert "got horovod, which is not installed" in broken.failed["all-reduce"]
    assert doctor(config, program=program).exit_code == 0, "a run that does not need it is not stopped"


def test_a_horovod_that_was_built_for_another_tensorflow(config: Path, tmp_path: Path) -> None:
    package(tmp_path / "broken/horovod/__init__.py", "__version__ = '0.28.1'")
    symbol = "undefined symbol: _ZN10tensorflow8OpKernel"
    package(tmp_path / "broken/horovod/tensorflow/__init__.py", f"raise ImportError('mpi_lib.so: {symbol}')")
    broken = doctor(config, "distribution.backend=horovod", **first_on_path(tmp_path / "broken"))
    assert_named(broken, "Horovod", symbol, "run: make horovod")


def test_a_tensorflow_that_does_not_load(config: Path, tmp_path: Path) -> None:
    package(tmp_path / "broken/tensorflow/__init__.py", "import os; os.abort()")
    broken = doctor(config, **first_on_path(tmp_path / "broken"))
    assert_named(broken, "TensorFlow", "does not load in", "exit code -6")
    assert broken.checks["Horovod"] == ("note", "not tried, since TensorFlow does not load")


def test_packages_that_do_not_fit_together(config: Path, tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: keras\nVersion: 2.0.0\n"
    package(tmp_path / "broken/keras-2.0.0.dist-info/METADATA", metadata)
    assert_named(doctor(config, **first_on_path(tmp_path / "broken")), "packages", "keras is 2.0.0, expected <4,>=3.15")


def test_gpus_that_are_asked_for_and_not_there(config: Path) -> None:
    if list(Path("/dev").glob("nvidia*")):
        pytest.skip("this machine has GPUs")
    broken = doctor(config, CUDA_VISIBLE_DEVICES="0")
    assert_named(broken, "GPUs", "CUDA_VISIBLE_DEVICES names 0", "to train on the CPU")


def test_gpus_that_tensorflow_does_not_see(config: Path, tmp_path: Path) -> None:
    package(tmp_path / "bin/nvidia-smi", "#!/bin/sh\necho 'NVIDIA A100, 40960, 535.104.05'\n")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), environment()["PATH"]])
    broken = doctor(config, PATH=path, CUDA_VISIBLE_DEVICES="0")
    assert_named(broken, "GPUs", "the driver has 1 x NVIDIA A100, and TensorFlow sees 0 of 1")


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_an_all_reduce_that_hangs(backend: str, config: Path) -> None:
    """A rank is stopped as soon as it is there: Python then knows nothing of the others yet."""
    mark = uuid.uuid4().hex
    overrides = (f"distribution.backend={backend}", "distribution.timeout_seconds=10", "watchdog.silence_seconds=5")
    hanging = Doctor([config, *overrides, "--workers", "2"], environment(**{MARK: mark}))
    os.kill(wait_for_rank(1, mark, hanging), signal.SIGSTOP)
    broken = hanging.finish()
    assert_named(broken, "all-reduce", "rank 0 was at: connecting to the others, rank 1 was not heard of")
    assert not list(ranks(mark)), "none of its processes is left"


def test_workers_with_different_secrets(config: Path, tmp_path: Path) -> None:
    first, second = gang(config, tmp_path, "distribution.backend=multiworker", secrets=("a" * 20, "b" * 20))
    assert_named(second, "all-reduce", "has another secret than this worker")
    assert first.exit_code in (2, 75) and "worker 1" in first.failed["all-reduce"]


def test_a_gang_without_a_secret(config: Path) -> None:
    broken = doctor(config, "distribution.backend=multiworker", "--gang", "--peers", "127.0.0.1,localhost", "--index", "0")
    assert_named(broken, "all-reduce", "no secret: expected --secret-file FILE")


def test_a_gang_of_which_nothing_is_known(config: Path) -> None:
    assert_named(doctor(config, "--gang"), "gang", "who the workers are is not known")


def test_a_peer_that_does_not_resolve_may_do_so_later(config: Path, tmp_path: Path) -> None:
    """Not 2: a job whose pods come late would be given up for good."""
    (tmp_path / "secret").write_text("a" * 20)
    place = ("--gang", "--peers", "127.0.0.1,nowhere.invalid", "--index", "0", "--port", str(free_ports(1)[0]))
    waiting = ("--secret-file", tmp_path / "secret", "--wait-seconds", "2")
    broken = doctor(config, "distribution.backend=multiworker", *place, *waiting)
    assert broken.exit_code == 75
    assert "nowhere.invalid (" in broken.failed["peers"] and "in Kubernetes" in broken.failed["peers"]
    assert "nowhere.invalid" in broken.failed["all-reduce"]


def assert_named(broken: Doctor, check: str, *expected: str, others: int = 0) -> None:
    """The check failed and says so much; the exit code is 2, and no more than so many others failed."""
    assert broken.exit_code == 2, broken.printed + broken.complaints
    assert check in broken.failed, broken.printed
    for text in expected:
        assert text in broken.failed[check]
    assert len(broken.failed) <= 1 + others, broken.printed
    assert "Traceback (most recent call last)" not in broken.complaints.replace("    [", "[") or check == "all-reduce"


def gang(
    config: Path, folder: Path, *arguments: str, ranks: int = 1, secrets: tuple[str, str] = ("a" * 20, "a" * 20)
) -> tuple[Doctor, Doctor]:
    """Two workers on this machine."""
    port, both = free_ports(1)[0], []
    for index, secret in enumerate(secrets):
        (folder / f"secret-{index}").write_text(secret)
        place = ("--gang", "--peers", "127.0.0.1,localhost", "--index", str(index), "--ranks", str(ranks), "--job", "test")
        meeting = ("--port", str(port), "--secret-file", folder / f"secret-{index}", "--wait-seconds", "60")
        both.append(Doctor([config, *place, *meeting, *arguments], environment()))
    try:
        first, second = (each.finish() for each in both)
    finally:
        for each in both:
            each.process.kill()
            each.process.wait()
    return first, second


def package(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def first_on_path(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def ranks(mark: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The processes of a doctor's probe, with their variables."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended meanwhile, or another user's
            continue
        if f"{MARK}={mark}" in variables and "python" in words[0] and "trainer.distribution.probe" in words:
            yield int(entry.name), dict(each.split("=", 1) for each in variables if "=" in each)


def wait_for_rank(number: int, mark: str, hanging: Doctor) -> int:
    while hanging.process.poll() is None:
        for pid, variables in ranks(mark):
            index = f'"index": {number}'
            if variables.get("HOROVOD_RANK") == str(number) or index in variables.get("TF_CONFIG", ""):
                return pid
        time.sleep(0.02)
    raise AssertionError(hanging.finish().printed)
