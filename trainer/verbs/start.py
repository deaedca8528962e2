"""What verbs do first: look whether the run is there, and then import TensorFlow, which takes seconds."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.heap import keep_free_ends, made_to_stay

if TYPE_CHECKING:
    from trainer.run_directory import RunDirectory

_NO_DRIVER = re.compile(r"^E\d{4} .*failed call to cuInit")


def started_run(path: Path) -> RunDirectory:
    """A run that has been started; complains of anything else before TensorFlow is imported."""
    from trainer.run_directory import open_run

    run, _ = open_run(path)
    return run


def import_tensorflow() -> None:
    """Imports TensorFlow, whose modules stay (`heap.made_to_stay`), into a heap that keeps what is freed at its end
    (`heap.keep_free_ends`), and without the notices that its C++ writes whatever the settings say; all else it says is
    passed on.

    Where there is no GPU, it is asked for them here: what it then says of a driver that is not there is no news either. And
    XLA is to use a CPU's vectors in their full width, which it halves as Intel's first 512-bit ones slowed down a core.
    """
    from launch.local import TENSORFLOW_NOTICE
    from launch.machine import find_machine

    keep_free_ends()
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")
    has_gpu = bool(find_machine().gpus)
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            with made_to_stay():
                tensorflow = importlib.import_module("tensorflow")
            if not has_gpu:
                tensorflow.config.list_physical_devices("GPU")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines(keepends=True):
                is_notice = TENSORFLOW_NOTICE.match(line) or (not has_gpu and _NO_DRIVER.match(line))
                if not is_notice:
                    sys.stderr.write(line)
