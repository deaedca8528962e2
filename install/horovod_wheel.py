"""The Horovod wheel: what its binary depends on, the key that stands for all of it, and the build."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from install.horovod_source import (
    HOROVOD_SDIST_SHA256,
    HOROVOD_VERSION,
    InstallError,
    apply_edits,
    edits_fingerprint,
    fetch_source,
)

NUM_COMPILE_JOBS = 2  # each needs up to 2 GB with TensorFlow's headers
PROGRESS_EVERY_SECONDS = 20
NUM_LOG_LINES_SHOWN = 30


@dataclass(frozen=True)
class Toolchain:
    """What a build uses: a C++ compiler and, where it is for NCCL, the folders of the CUDA toolkit and of NCCL."""

    cxx: Path
    cuda: Path | None = None
    nccl: Path | None = None

    @property
    def accelerator(self) -> str:
        return "nccl" if self.cuda else "cpu"


@dataclass(frozen=True)
class BuildInputs:
    """All that the wheel's binary depends on."""

    horovod: str
    sdist_sha256: str
    edits_sha256: str
    tensorflow: str
    python: str
    platform: str
    c_library: str
    settings: dict[str, str]
    compiler: str
    cuda: str
    nccl: str

    def key(self) -> str:
        """Twelve hexadecimal digits that differ wherever any input differs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def collect_build_inputs(toolchain: Toolchain) -> BuildInputs:
    """Raises InstallError where this environment has no TensorFlow to build against."""
    tensorflow = installed_version("tensorflow")
    if tensorflow is None:
        raise InstallError(
            f"TensorFlow is not installed in {sys.prefix}, and Horovod is built against it. Run `make setup` first."
        )
    return BuildInputs(
        horovod=HOROVOD_VERSION,
        sdist_sha256=HOROVOD_SDIST_SHA256,
        edits_sha256=edits_fingerprint(),
        tensorflow=tensorflow,
        python=str(sysconfig.get_config_var("SOABI")),
        platform=sysconfig.get_platform(),
        # A binary made with a newer C library does not load with an older one, and home directories are shared.
        c_library=" ".join(platform.libc_ver()),
        settings=build_settings(toolchain.accelerator),
        compiler=compiler_version(toolchain.cxx),
        cuda=compiler_version(toolchain.cuda / "bin" / "nvcc") if toolchain.cuda else "",
        nccl=(installed_version("nvidia-nccl-cu12") or "") if toolchain.nccl else "",
    )


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiler_version(compiler: Path) -> str:
    """The line of `COMPILER --version` that holds the version: nvcc's says "release", g++'s is the first."""
    lines = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    return next((line for line in lines if "release" in line), lines[0])


def build_settings(accelerator: str) -> dict[str, str]:
    """The environment variables that decide what Horovod's build makes."""
    settings = {
        "HOROVOD_WITH_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_PYTORCH": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        # Left to themselves, MPI and NVTX are built in wherever the machine happens to have them.
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_WITHOUT_NVTX": "1",
        "HOROVOD_BUILD_ARCH_FLAGS": " ".join(instruction_set_flags()),
        # Horovod's copy of Gloo needs <cstdint> and does not include it, which GCC 15 no longer forgives
        # (pytorch/pytorch#153933); and it asks for CMake 2.8, which CMake 4 refuses unless told this.
        "CXXFLAGS": "-include cstdint",
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    }
    if accelerator == "nccl":
        settings |= {"HOROVOD_GPU": "CUDA", "HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_LINK": "SHARED"}
    return settings


def instruction_set_flags() -> list[str]:
    """The compiler flags for those of the vector extensions that Horovod uses which this processor has."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    present = flags[1].split() if flags else []
    return [f"-m{extension}" for extension in ("f16c", "avx", "fma") if extension in present]


def build_wheel(toolchain: Toolchain, inputs: BuildInputs, version: str, destination: Path) -> None:
    """Builds the wheel into the folder `destination`, which appears at once, whole, or not at all.

    The caller sees to it that no other process builds the same.
    """
    log_path = destination.with_suffix(".log")
    scratch = destination.with_suffix(".building")
    # Always a fresh tree: Horovod's CMake rewrites copies of its own files and fails on a tree it has built before.
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        say(f"downloading the source of {HOROVOD_VERSION}")
        source = fetch_source(scratch)
        apply_edits(source)
        finished = scratch / "finished"
        command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps"]
        command += ["--no-cache-dir", "--wheel-dir", str(finished), str(source)]
        say(f"building {version}: 2 to 5 minutes on two cores; log: {log_path}")
        run_build(command, build_environment(toolchain, scratch, version), log_path)
        (finished / "inputs.json").write_text(json.dumps(asdict(inputs), indent=2) + "\n", encoding="utf-8")
        finished.rename(destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def build_environment(toolchain: Toolchain, scratch: Path, version: str) -> dict[str, str]:
    """This process's environment, without what would change the build behind its key's back, and with the settings."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HOROVOD_", "CMAKE_")) and name not in ("CFLAGS", "LDFLAGS", "MAKELEVEL", "MFLAGS")
    }
    environment |= build_settings(toolchain.accelerator)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["CXX"] = str(toolchain.cxx)
    environment["MAKEFLAGS"] = f"-j{NUM_COMPILE_JOBS}"
    environment["HOROVOD_LOCAL_VERSION"] = version.partition("+")[2]
    if toolchain.cuda and toolchain.nccl:
        # The linker looks for libnccl.so; the package has libnccl.so.2, which is also the name that the wheel asks for.
        (scratch / "libnccl.so").symlink_to(toolchain.nccl / "lib" / "libnccl.so.2")
        environment["HOROVOD_CUDA_HOME"] = str(toolchain.cuda)
        environment["PATH"] = f"{toolchain.cuda / 'bin'}{os.pathsep}{environment['PATH']}"
        environment["HOROVOD_NCCL_INCLUDE"] = str(toolchain.nccl / "include")
        environment["HOROVOD_NCCL_LIB"] = str(scratch)
    return environment


def run_build(command: list[str], environment: dict[str, str], log_path: Path) -> None:
    """Runs the build with its output in the log, and says now and then how far it is."""
    started = time.monotonic()
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                process.wait(PROGRESS_EVERY_SECONDS)
                break
            except subprocess.TimeoutExpired:
                text = log_path.read_text(encoding="utf-8", errors="replace")
                percentages = re.findall(r"^\s*\[\s*(\d+)%\]", text, re.MULTILINE)
                say(f"  {percentages[-1] if percentages else 0}% after {time.monotonic() - started:.0f} s")
    if process.returncode != 0:
        raise InstallError(f"the build failed. {first_error(log_path)}")
    say(f"built in {time.monotonic() - started:.0f} s")


def first_error(log_path: Path) -> str:
    """The first error of a build and what follows it; pip's last lines are about pip."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror: |\bCMake Error ", line)), None)
    if first is None:
        return last_lines(log_path)
    return f"The first error in {log_path}:\n" + "\n".join(lines[first : first + NUM_LOG_LINES_SHOWN])


def last_lines(log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"The last lines of {log_path}:\n" + "\n".join(lines[-NUM_LOG_LINES_SHOWN:])


def say(message: str) -> None:
    print(f"horovod: {message}", flush=True)
