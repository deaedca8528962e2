"""Builds Horovod for this environment's TensorFlow, installs it and proves it: `python -m install.build_horovod`.

The wheel is cached outside the tree, in `${XDG_CACHE_HOME:-~/.cache}/drumline/horovod/KEY/`, where KEY is a hash of all
that the binary depends on. The wheel's version ends with the key, so the installed Horovod says which build it is.
Nothing is called done before two ranks under the real `horovodrun --gloo` have got exact sums. That proof is noted in
the environment, and a repeated run ends at once.

What `--accelerator` builds:

    auto   NCCL where the machine has an NVIDIA GPU and the CUDA toolkit, and the environment has nvidia-nccl-cu12
           (`make setup GPU=1`); else CPU. A toolkit without a GPU does not ask for NCCL: many machines are like that,
           and an environment there need not carry CUDA. Where the choice is not plain, it is printed with its reason.
    cpu    Gloo alone. Tensors on a GPU travel through the host's memory.
    nccl   NCCL for tensors on GPUs, Gloo for the rest; also without a GPU, on a machine that builds for others.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from install.horovod_source import HOROVOD_VERSION, InstallError
from install.horovod_wheel import (
    Toolchain,
    build_wheel,
    collect_build_inputs,
    installed_version,
    last_lines,
    say,
)

NUM_RANKS = 2
PROOF_TIMEOUT_SECONDS = 180
GPU_DEVICE = Path("/dev/nvidia0")
RANK_PROGRAM = Path(__file__).with_name("two_rank_allreduce.py")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m install.build_horovod",
        description="Build, install and prove Horovod for the TensorFlow of this environment.",
    )
    parser.add_argument("--accelerator", choices=("auto", "cpu", "nccl"), default="auto")
    accelerator = parser.parse_args().accelerator
    try:
        ensure_horovod(find_toolchain(accelerator))
    except InstallError as error:
        sys.exit(f"horovod: error: {error}")


def ensure_horovod(toolchain: Toolchain) -> None:
    """Leaves this environment with a proven Horovod, doing only what is still missing."""
    inputs = collect_build_inputs(toolchain)
    key = inputs.key()
    version = f"{HOROVOD_VERSION}+{toolchain.accelerator}.key{key}"
    if installed_version("horovod") == version and is_proven(version):
        say(f"{version} is installed and proven")
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drumline" / "horovod"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / key
    with exclusive_lock(cache / f"{key}.lock"):
        if not folder.is_dir():
            build_wheel(toolchain, inputs, version, folder)
        if installed_version("horovod") != version:
            say(f"installing the wheel of {folder}")
            install_wheel(folder)
        say(f"proving it with {NUM_RANKS} ranks under horovodrun: about 10 seconds")
        prove(toolchain.accelerator, folder)
        record_proof(version)
    say(f"{version} is installed and proven")


def find_toolchain(accelerator: str) -> Toolchain:
    """The toolchain for `--accelerator`; raises InstallError where something it needs is missing."""
    cxx = shutil.which(os.environ.get("CXX", "g++"))
    missing = [name for name, found in (("g++ (or $CXX)", cxx), ("cmake", shutil.which("cmake"))) if not found]
    if cxx is None or missing:
        raise InstallError(f"not found: {', '.join(missing)}. install/check_system.sh prints the command that helps.")
    if accelerator == "cpu":
        return Toolchain(Path(cxx))

    cuda, nccl, has_gpu = find_cuda(), find_nccl(), GPU_DEVICE.exists()
    missing = [name for name, found in (("the CUDA toolkit", cuda), ("the package nvidia-nccl-cu12", nccl)) if not found]
    if not missing and (has_gpu or accelerator == "nccl"):
        return Toolchain(Path(cxx), cuda, nccl)
    if accelerator == "nccl":
        raise InstallError(
            f"--accelerator nccl: not found: {', '.join(missing)}. The toolkit (bin/nvcc, include/cuda_runtime.h) is"
            " looked for in $CUDA_HOME or, where that is not set, around the nvcc on PATH and in /usr/local/cuda; the"
            " package comes with `make setup GPU=1`."
        )
    if has_gpu:
        say(f"building for the CPU, so gradients will pass through the host's memory: not found: {', '.join(missing)}")
    elif cuda:
        say(f"building for the CPU: {cuda} is here, but no NVIDIA GPU (`make horovod ACCELERATOR=nccl` insists)")
    return Toolchain(Path(cxx))


def find_cuda() -> Path | None:
    """The folder of the CUDA toolkit: where the user points, else around nvcc, else where CUDA's installers put it."""
    nvcc = shutil.which("nvcc")
    around_nvcc = [Path(nvcc).resolve().parents[1]] if nvcc else []
    home = os.environ.get("CUDA_HOME")
    for folder in [Path(home)] if home else [*around_nvcc, Path("/usr/local/cuda")]:
        if (folder / "bin" / "nvcc").is_file() and (folder / "include" / "cuda_runtime.h").is_file():
            return folder.resolve()
    return None


def find_nccl() -> Path | None:
    """The folder of the installed nvidia-nccl-cu12, with include/nccl.h and lib/libnccl.so.2."""
    folder = Path(sysconfig.get_path("purelib"), "nvidia", "nccl")
    return folder if (folder / "lib" / "libnccl.so.2").is_file() else None


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Holds a lock file, so that processes that want one wheel take turns; the lock dies with its process."""
    with path.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is at this wheel; waiting for it (lock: {path})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install_wheel(folder: Path) -> None:
    """Installs the cached wheel in place of whatever Horovod the environment has."""
    wheels = [str(path) for path in folder.glob("*.whl")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    result = subprocess.run([*command, *wheels], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise InstallError(f"pip could not install the wheel of {folder}: delete that folder and try again.\n{result.stdout}")


def prove(accelerator: str, folder: Path) -> None:
    """Reduces over two ranks under horovodrun; raises InstallError unless each reports exact sums in time."""
    log_path = folder.with_suffix(".proof.log")
    python = Path(sys.executable)
    command = [str(python.with_name("horovodrun")), "--gloo", "-np", str(NUM_RANKS)]
    command += [str(python), str(RANK_PROGRAM), str(NUM_RANKS)]
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(PROOF_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as timeout:
            stop(process)
            raise InstallError(
                f"{NUM_RANKS} ranks under horovodrun did not reduce in {PROOF_TIMEOUT_SECONDS} s and were stopped."
                f" {last_lines(log_path)}"
            ) from timeout
    nccl = "built" if accelerator == "nccl" else "not built"
    output = log_path.read_text(encoding="utf-8", errors="replace")
    reports = re.findall(rf"rank \d+ of {NUM_RANKS}: sums exact on \w+, NCCL {nccl}$", output, re.MULTILINE)
    if process.returncode != 0 or len({report.split()[1] for report in reports}) != NUM_RANKS:
        raise InstallError(
            f"{NUM_RANKS} ranks under horovodrun did not reduce correctly (exit code {process.returncode}). Should the"
            f" cached wheel be at fault, delete {folder} and try again. {last_lines(log_path)}"
        )
    for report in sorted(reports):
        say(f"  {report}")


def stop(horovodrun: subprocess.Popen[bytes]) -> None:
    """Asks horovodrun to stop its ranks, which live in sessions of their own; kills it where it does not."""
    horovodrun.send_signal(signal.SIGTERM)
    try:
        horovodrun.wait(15)
    except subprocess.TimeoutExpired:
        horovodrun.kill()
        horovodrun.wait()


def proof_path() -> Path:
    return Path(sys.prefix, "horovod-proof.json")


def is_proven(version: str) -> bool:
    try:
        return bool(json.loads(proof_path().read_text(encoding="utf-8")) == {"proven": version})
    except (OSError, ValueError):
        return False


def record_proof(version: str) -> None:
    partial = proof_path().with_suffix(".partial")
    partial.write_text(json.dumps({"proven": version}) + "\n", encoding="utf-8")
    partial.replace(proof_path())


if __name__ == "__main__":
    main()
