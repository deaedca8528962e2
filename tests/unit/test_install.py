"""What `install/` promises, short of a build: edits, key, choice of accelerator, proof, check of the system, locks."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from install import build_horovod, horovod_wheel
from install.build_horovod import find_toolchain, is_proven, prove, record_proof
from install.horovod_source import EDITS, Edit, InstallError, apply_edits, edits_fingerprint
from install.horovod_wheel import BuildInputs, Toolchain, build_wheel

REPOSITORY = Path(__file__).parents[2]


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


# The edits of Horovod's source.


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """Files that hold just what the edits expect, each text between two lines of its own."""
    for edit in EDITS:
        path = tmp_path / edit.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"before\n{edit.expected}after\n")
    return tmp_path


def test_edits_change_what_they_name_and_nothing_else(source_tree: Path) -> None:
    apply_edits(source_tree)
    cmake_lists = (source_tree / "horovod/tensorflow/CMakeLists.txt").read_text()
    assert "xla_mpi_ops.cc" not in cmake_lists
    assert '"$ORIGIN/../../tensorflow;$ORIGIN/../../nvidia/nccl/lib"' in cmake_lists
    assert "GpuStreamHandle AsGpuStreamValue(Stream* stream) {" in (source_tree / "horovod/tensorflow/mpi_ops.cc").read_text()
    assert (source_tree / "horovod/runner/js_run.py").read_text() == (
        "before\nfrom shutil import which as find_executable\nafter\n"
    )
    assert cmake_lists.startswith("before\nafter\nbefore\n") and cmake_lists.endswith("\nafter\n")


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.path)
def test_edit_refuses_a_file_without_the_expected_text(source_tree: Path, edit: Edit) -> None:
    (source_tree / edit.path).write_text("another release\n")
    with pytest.raises(InstallError, match=rf"{re.escape(edit.path)}: expected .* once, found it 0 times"):
        apply_edits(source_tree, (edit,))
    assert (source_tree / edit.path).read_text() == "another release\n"


def test_edit_refuses_a_missing_file_and_an_ambiguous_one(source_tree: Path) -> None:
    edit = EDITS[0]
    path = source_tree / edit.path
    path.write_text(edit.expected * 2)
    with pytest.raises(InstallError, match="found it 2 times"):
        apply_edits(source_tree, (edit,))
    path.unlink()
    with pytest.raises(InstallError, match="found it 0 times"):
        apply_edits(source_tree, (edit,))


def test_fingerprint_of_the_edits_follows_what_they_do() -> None:
    changed = (dataclasses.replace(EDITS[0], replacement="# gone\n"), *EDITS[1:])
    reworded = (dataclasses.replace(EDITS[0], reason="another"), *EDITS[1:])
    assert edits_fingerprint(changed) != edits_fingerprint() == edits_fingerprint(reworded)


# The key of the cached wheel.

INPUTS = BuildInputs(
    horovod="0.28.1",
    sdist_sha256="92a4",
    edits_sha256="5f1c",
    tensorflow="2.21.0",
    python="cpython-311-x86_64-linux-gnu",
    platform="linux-x86_64",
    c_library="glibc 2.36",
    settings={"HOROVOD_WITH_GLOO": "1"},
    compiler="g++ 12.2.0",
    cuda="",
    nccl="",
)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(BuildInputs)])
def test_key_changes_with_every_input(name: str) -> None:
    other = {"HOROVOD_WITH_GLOO": "1", "MORE": "1"} if name == "settings" else "another"
    assert dataclasses.replace(INPUTS, **{name: other}).key() != INPUTS.key()


def test_key_is_the_same_for_the_same_inputs() -> None:
    assert dataclasses.replace(INPUTS).key() == INPUTS.key()
    assert re.fullmatch(r"[0-9a-f]{12}", INPUTS.key())


def test_settings_differ_between_accelerators() -> None:
    assert horovod_wheel.build_settings("nccl")["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert "HOROVOD_GPU_OPERATIONS" not in horovod_wheel.build_settings("cpu")


def test_environment_of_the_build_drops_settings_that_the_key_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOROVOD_WITH_MPI", "1")
    monkeypatch.setenv("CXXFLAGS", "-O0")
    monkeypatch.setenv("MAKEFLAGS", "-j64 --jobserver-auth=3,4")
    environment = horovod_wheel.build_environment(Toolchain(Path("/usr/bin/g++")), tmp_path, "0.28.1+cpu.key0")
    assert "HOROVOD_WITH_MPI" not in environment
    assert environment["CXXFLAGS"] == "-include cstdint"
    assert environment["MAKEFLAGS"] == "-j2"
    assert environment["HOROVOD_LOCAL_VERSION"] == "cpu.key0"


# Choosing what to build.


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with g++, cmake, CUDA, nvidia-nccl-cu12 and a GPU; tests take away from it."""
    (tmp_path / "bin").mkdir()
    for program in ("g++", "cmake", "nvcc"):
        write_script(tmp_path / "bin" / program, "exit 0")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    (tmp_path / "gpu").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build_horovod, "GPU_DEVICE", tmp_path / "gpu")
    monkeypatch.setattr(build_horovod, "find_nccl", lambda: tmp_path)
    return tmp_path


def test_auto_builds_for_nccl_where_the_machine_has_all_of_it(machine: Path) -> None:
    assert find_toolchain("auto") == Toolchain(machine / "bin" / "g++", machine, machine)
    assert find_toolchain("cpu").accelerator == "cpu"


def test_auto_builds_for_the_cpu_and_says_why_where_cuda_has_no_gpu(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "gpu").unlink()
    assert find_toolchain("auto").accelerator == "cpu"
    assert "no NVIDIA GPU" in capsys.readouterr().out
    assert find_toolchain("nccl").accelerator == "nccl"


def test_auto_builds_for_the_cpu_and_says_why_where_nccl_is_missing(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_horovod, "find_nccl", lambda: None)
    assert find_toolchain("auto").accelerator == "cpu"
    assert "not found: the package nvidia-nccl-cu12" in capsys.readouterr().out
    with pytest.raises(InstallError, match="make setup GPU=1"):
        find_toolchain("nccl")


def test_cuda_is_found_around_nvcc_and_nowhere_else_than_where_the_user_points(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(machine / "another"))
    with pytest.raises(InstallError, match="not found: the CUDA toolkit"):
        find_toolchain("nccl")
    monkeypatch.delenv("CUDA_HOME")
    assert find_toolchain("nccl").cuda == machine


def test_missing_cmake_is_named(machine: Path) -> None:
    (machine / "bin" / "cmake").unlink()
    with pytest.raises(InstallError, match="not found: cmake"):
        find_toolchain("auto")


# The build and the proof.


def test_failed_build_leaves_nothing_and_shows_its_first_error(
    source_tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    failing = [
        sys.executable,
        "-c",
        "print('[ 3%] Building'); print('a.cc:1: error: no'); print('pip: failed'); raise SystemExit(1)",
    ]
    run_build = horovod_wheel.run_build
    monkeypatch.setattr(horovod_wheel, "fetch_source", lambda directory: source_tree)
    monkeypatch.setattr(horovod_wheel, "run_build", lambda command, environment, log: run_build(failing, environment, log))
    with pytest.raises(
        InstallError, match=r"the build failed\. The first error in .*/key\.log:\na\.cc:1: error: no\npip: failed"
    ):
        build_wheel(Toolchain(Path("/usr/bin/g++")), INPUTS, "0.28.1+cpu.key0", cache / "key")
    assert [path.name for path in cache.iterdir()] == ["key.log"]


def test_processes_that_want_one_wheel_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns: list[str] = []

    def second() -> None:
        with build_horovod.exclusive_lock(tmp_path / "lock"):
            turns.append("second")

    waiting = threading.Thread(target=second)
    with build_horovod.exclusive_lock(tmp_path / "lock"):
        waiting.start()
        waiting.join(0.2)
        turns.append("first")
    waiting.join(10)
    assert turns == ["first", "second"]
    assert "waiting for it" in capsys.readouterr().out


RANK_0 = "echo '[0]<stdout>:rank 0 of 2: sums exact on CPU, NCCL not built'"
RANK_1 = "echo '[1]<stdout>:rank 1 of 2: sums exact on CPU, NCCL not built'"


@pytest.fixture
def environment_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the environment's, so that a false horovodrun can be put there."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path


def test_proof_wants_the_report_of_both_ranks(environment_folder: Path) -> None:
    write_script(environment_folder / "horovodrun", f"{RANK_0}\n{RANK_1}")
    prove("cpu", environment_folder / "key")


@pytest.mark.parametrize(
    "horovodrun",
    [
        pytest.param("exit 0", id="silent"),
        pytest.param(f"{RANK_0}\n{RANK_0}", id="one rank twice"),
        pytest.param(f"{RANK_0}\n{RANK_1}\nexit 1", id="exit code"),
        pytest.param("echo 'rank 0 of 1: sums exact on CPU, NCCL not built'", id="ranks that never met"),
    ],
)
def test_proof_refuses_anything_less(environment_folder: Path, horovodrun: str) -> None:
    write_script(environment_folder / "horovodrun", horovodrun)
    with pytest.raises(InstallError, match="did not reduce correctly"):
        prove("cpu", environment_folder / "key")


def test_proof_refuses_a_build_without_the_nccl_it_was_asked_for(environment_folder: Path) -> None:
    write_script(environment_folder / "horovodrun", f"{RANK_0}\n{RANK_1}")
    with pytest.raises(InstallError, match="did not reduce correctly"):
        prove("nccl", environment_folder / "key")


def test_proof_ends_a_horovodrun_that_hangs(environment_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_horovod, "PROOF_TIMEOUT_SECONDS", 0.2)
    write_script(environment_folder / "horovodrun", "exec sleep 60")
    with pytest.raises(InstallError, match=r"did not reduce in 0\.2 s and were stopped"):
        prove("cpu", environment_folder / "key")


def test_proof_holds_for_the_version_it_was_made_with(environment_folder: Path) -> None:
    assert not is_proven("0.28.1+cpu.key0")
    record_proof("0.28.1+cpu.key0")
    assert is_proven("0.28.1+cpu.key0")
    assert not is_proven("0.28.1+cpu.key1")
    build_horovod.proof_path().write_text("{")
    assert not is_proven("0.28.1+cpu.key0")


# The check of the system.


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A folder for PATH with all that Drumline needs of a system, and what the script itself calls."""
    programs = {"python3": sys.executable, "apt-cache": "/bin/true"}
    for program in ("g++", "cmake", "make", "id", "grep"):
        programs[program] = shutil.which(program) or pytest.skip(f"this machine has no {program}")
    for name, target in programs.items():
        write_script(tmp_path / name, f'exec {target} "$@"')
    return tmp_path


def check_system(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(REPOSITORY / "install" / "check_system.sh"), *arguments]
    environment = {"PATH": str(path), "HOME": os.environ.get("HOME", "/"), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_system_with_everything_passes_in_silence(system: Path) -> None:
    result = check_system(system)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert check_system(system, "--packages").stdout == "\n"
    assert check_system(system, "--python").stdout == "python3\n"


def test_missing_programs_are_named_with_the_one_command_that_installs_them(system: Path) -> None:
    (system / "cmake").unlink()
    (system / "g++").unlink()
    result = check_system(system)
    assert result.returncode == 2
    assert "cmake" in result.stderr and "C++17 compiler" in result.stderr
    assert re.search(r"apt-get install .* g\+\+ cmake$", result.stderr, re.MULTILINE)
    assert check_system(system, "--packages").stdout == "g++ cmake\n"


def test_old_python_is_named_with_its_version(system: Path) -> None:
    write_script(system / "python3", "echo 3.10")
    result = check_system(system)
    assert result.returncode == 2
    assert "python3 is 3.10" in result.stderr and "python3-venv" in result.stderr


def test_python_without_venv_gives_way_to_one_that_has_it(system: Path) -> None:
    without_venv = 'case "$2" in *ensurepip*) exit 1 ;; *) echo 3.12 ;; esac'
    write_script(system / "python3", without_venv)
    assert "python3.12-venv" in check_system(system).stderr
    write_script(system / "python3.11", f'exec {sys.executable} "$@"')
    assert check_system(system, "--python").stdout == "python3.11\n"


def test_python_asked_for_is_taken_or_refused(system: Path) -> None:
    write_script(system / "mine", "echo 3.14")
    assert "PYTHON=mine is 3.14" in check_system(system, PYTHON="mine").stderr
    assert check_system(system, "--python", PYTHON="python3").stdout == "python3\n"


# The locks and the Makefile.


def locked_versions(lock: str) -> dict[str, str]:
    text = (REPOSITORY / "install" / lock).read_text(encoding="utf-8")
    requirements = re.findall(r"^([\w.-]+)==(\S+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    assert len(requirements) == sum("==" in line for line in text.splitlines()), f"{lock}: a requirement without a hash"
    return {name: version for name, version, _ in requirements}


def test_locks_agree_and_name_what_builds_horovod() -> None:
    cpu, gpu = locked_versions("requirements.lock"), locked_versions("requirements-gpu.lock")
    assert gpu.items() >= cpu.items()
    assert gpu.keys() - cpu.keys() >= {"nvidia-nccl-cu12", "nvidia-cudnn-cu12"}
    assert cpu.keys() >= {"tensorflow", "setuptools", "wheel", "cloudpickle", "packaging", "psutil", "pyyaml"}
    assert int(cpu["setuptools"].split(".")[0]) < 81


def test_help_lists_every_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    result = subprocess.run(["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert sorted(line.split()[1] for line in result.stdout.splitlines()) == sorted(targets)
