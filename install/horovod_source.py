"""The source of Horovod 0.28.1, as released, and the edits that let it build and load with TensorFlow 2.16 and later.

0.28.1 is Horovod's last release and older than those TensorFlows. Every edit names the text it expects, so that another
release is refused and never built half-edited.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOROVOD_VERSION = "0.28.1"
HOROVOD_SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"


class InstallError(Exception):
    """Horovod cannot be installed here; the message says what, where, what was got, and what to do."""


@dataclass(frozen=True)
class Edit:
    """Replaces the one occurrence of `expected` in the file `path` (relative to the source tree) by `replacement`."""

    path: str
    expected: str
    replacement: str
    reason: str


EDITS = (
    Edit(
        path="horovod/tensorflow/CMakeLists.txt",
        expected='list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        replacement="",
        reason="xla_mpi_ops.cc, the optional allreduce inside an XLA cluster, includes headers that have moved",
    ),
    Edit(
        path="horovod/tensorflow/CMakeLists.txt",
        expected='set_target_properties(${TF_TARGET_LIB} PROPERTIES OUTPUT_NAME "mpi_lib")\n',
        replacement=(
            'set_target_properties(${TF_TARGET_LIB} PROPERTIES OUTPUT_NAME "mpi_lib")\n'
            "set_target_properties(${TF_TARGET_LIB} PROPERTIES BUILD_WITH_INSTALL_RPATH TRUE\n"
            '                      INSTALL_RPATH "$ORIGIN/../../tensorflow;$ORIGIN/../../nvidia/nccl/lib")\n'
        ),
        reason="the cached wheel finds TensorFlow and NCCL beside it in any environment, without LD_LIBRARY_PATH",
    ),
    Edit(
        path="horovod/tensorflow/mpi_ops.cc",
        expected="#endif // TENSORFLOW_VERSION >= 2011000000\n#endif // HAVE_GPU\n",
        replacement=(
            "#endif // TENSORFLOW_VERSION >= 2011000000\n"
            "namespace stream_executor {\n"
            "namespace gpu {\n"
            "GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n"
            "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n"
            "}\n"
            "} // namespace gpu\n"
            "} // namespace stream_executor\n"
            "#endif // HAVE_GPU\n"
        ),
        reason="TensorFlow no longer exports AsGpuStreamValue, without which a GPU build compiles but does not load",
    ),
    Edit(
        path="horovod/common/gloo/gloo_context.cc",
        expected=(
            "  device_attr.ai_family = AF_UNSPEC;\n"
            "  auto dev = CreateDevice(device_attr);\n"
            "\n"
            "  global_ctx = global_context.ctx;\n"
        ),
        replacement=(
            "  gloo_iface_ = global_context.gloo_iface_;\n"
            "  device_attr.iface = gloo_iface_;\n"
            "  device_attr.ai_family = AF_UNSPEC;\n"
            "  auto dev = CreateDevice(device_attr);\n"
            "\n"
            "  global_ctx = global_context.ctx;\n"
        ),
        reason=(
            "connections of a process set ignore HOROVOD_GLOO_IFACE: they take the address of the host's own name, which is "
            "that of the loopback interface on many machines, and ranks on two machines do not meet"
        ),
    ),
    Edit(
        path="horovod/runner/js_run.py",
        expected="from distutils.spawn import find_executable\n",
        replacement="from shutil import which as find_executable\n",
        reason="Python 3.12 has no distutils, and horovodrun imports this file on every machine",
    ),
)


def edits_fingerprint(edits: tuple[Edit, ...] = EDITS) -> str:
    """SHA-256 of what the edits do; a reworded reason is no cause to build again."""
    changes = [(edit.path, edit.expected, edit.replacement) for edit in edits]
    return hashlib.sha256(json.dumps(changes).encode()).hexdigest()


def apply_edits(tree: Path, edits: tuple[Edit, ...] = EDITS) -> None:
    """Makes the edits in the source tree; raises InstallError unless each expected text is there exactly once."""
    for edit in edits:
        path = tree / edit.path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (count := text.count(edit.expected)) != 1:
            raise InstallError(
                f"{path}: expected {edit.expected.splitlines()[0]!r} once, found it {count} times. This is not the"
                f" source of Horovod {HOROVOD_VERSION}; the edits in install/horovod_source.py fit no other. Purpose of"
                f" this one: {edit.reason}."
            )
        path.write_text(text.replace(edit.expected, edit.replacement), encoding="utf-8")


def fetch_source(directory: Path) -> Path:
    """Downloads the sdist by pip into `directory`, its hash checked, and returns the tree unpacked there."""
    requirement = directory / "requirement.txt"
    requirement.write_text(f"horovod=={HOROVOD_VERSION} --hash=sha256:{HOROVOD_SDIST_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--require-hashes", "--no-binary", "horovod", "--dest", str(directory), "-r", str(requirement)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise InstallError(
            f"pip could not download the source of Horovod {HOROVOD_VERSION}; is a package index reachable? It said:\n"
            f"{result.stdout.strip()}"
        )
    shutil.unpack_archive(directory / f"horovod-{HOROVOD_VERSION}.tar.gz", directory)
    return directory / f"horovod-{HOROVOD_VERSION}"
