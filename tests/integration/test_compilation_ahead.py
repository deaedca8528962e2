"""What XLA compiles of an update is compiled while the update is being traced, and never again."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

# As TensorFlow tells of each compilation, at level 1 of its verbose log of this file.
COMPILED = re.compile(r"device_compilation_profiler\.cc:\d+\] Compiled (?P<name>\S+) (?P<times>\d+) times")

PROGRAM = """
import sys
import tensorflow as tf
from tests.unit.toy_training import VOCABULARY_SIZE, config, dataset
from trainer.config import plan_batches
from trainer.distribution import connect
from trainer.models.compilation_ahead import THREAD
from trainer.position import GraphPosition
from trainer.sizes import Sizes
from trainer.step import compile_training
from trainer.training_state import create_state

settings = config()
distribution, plan = connect(settings.distribution), plan_batches(settings.train, 1)
state = create_state(settings, Sizes(VOCABULARY_SIZE))
train_steps = compile_training(settings, state, distribution, plan, "elementwise", GraphPosition())
arguments = (
    distribution.iterate(dataset(plan, distribution.replicas, unequal=False)), tf.constant(0, tf.int64), tf.constant(2)
)
train_steps.get_concrete_function(*arguments)
THREAD.shutdown()
print("traced", file=sys.stderr, flush=True)
train_steps(*arguments)["loss"].numpy()
print("trained", file=sys.stderr, flush=True)
"""


@pytest.mark.processes
def test_what_is_traced_is_compiled_before_the_first_update() -> None:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "device_compilation_profiler=1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    traced, trained = lines.index("traced"), lines.index("trained")
    ahead = [match for line in lines[:traced] if (match := COMPILED.search(line))]
    chains = {re.sub(r"^__inference_+|_\d+$", "", match["name"]) for match in ahead}
    assert {"normalize", "gelu", "masked_softmaxes", "compiled_cross_entropy", "backward"} <= chains
    assert {match["times"] for match in ahead} == {"1"}
    assert not [line for line in lines[traced:trained] if COMPILED.search(line)]
    assert not [line for line in lines if "WARNING:tensorflow" in line]
