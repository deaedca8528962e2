"""What TensorFlow and Horovod say of themselves and of this machine, as a program: a line of JSON for each that loads.

    python -m trainer.distribution.survey

`drumline doctor` runs it in a process of its own: a package that was built for another may take its process down.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import keras
import tensorflow as tf


def describe_tensorflow() -> dict[str, Any]:
    """Versions, the CUDA that it was built for (None: for none), and the GPUs it finds."""
    build = tf.sysconfig.get_build_info()
    return {
        "package": "tensorflow",
        "version": tf.__version__,
        "keras": keras.__version__,
        "cuda": build.get("cuda_version") if build.get("is_cuda_build") else None,
        "gpus": [gpu.name for gpu in tf.config.list_physical_devices("GPU")],
    }


def describe_horovod() -> dict[str, Any]:
    """Whether it is there, loads into this TensorFlow, and what it was built with."""
    if importlib.util.find_spec("horovod") is None:
        return {"package": "horovod", "problem": "not installed"}
    try:
        import horovod
        import horovod.tensorflow as hvd

        version = horovod.__version__
        built = {"NCCL": hvd.nccl_built(), "Gloo": hvd.gloo_built(), "MPI": hvd.mpi_built()}
    except Exception as error:  # whatever a broken package may raise: missing symbols, missing files, its own errors
        told = (str(error).splitlines() or [""])[0]
        return {"package": "horovod", "problem": f"{type(error).__name__}: {told}"}
    return {"package": "horovod", "version": version, "built": [name for name, is_built in built.items() if is_built]}


if __name__ == "__main__":
    print(json.dumps(describe_tensorflow()), flush=True)
    print(json.dumps(describe_horovod()), flush=True)
