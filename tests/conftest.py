"""What all tests share: TensorFlow with two CPU devices for those that ask for it, and a small configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Of `make test`: the same examples each time, and few; `make fuzz` takes the profile `long`.
settings.register_profile("default", max_examples=60, derandomize=True, deadline=10_000, database=None)
settings.register_profile(
    "long", max_examples=5_000, deadline=10_000, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--atheris-runs", type=int, default=0, help="of test_fuzzing.py: so many inputs that atheris chooses")


def pytest_configure(config: pytest.Config) -> None:
    """Atheris is told which lines are reached by modules that are imported from here on."""
    if config.getoption("--atheris-runs"):
        import atheris

        atheris.instrument_imports(include=["trainer"]).__enter__()


SMALL_CONFIG = """\
run: {name: small, directory: RUNS}
data:
  store: STORE
  train:
    - path: text.txt
  sequence_length: 16
  tokenizer: {kind: bpe, vocabulary_size: 300}
model:
  num_layers: 2
  num_heads: 2
  width: 8
optimizer:
  learning_rate: 3e-4
train:
  steps: 20
  global_batch_size: 8
"""


@pytest.fixture(scope="session")
def tensorflow() -> Any:
    """TensorFlow with two logical CPU devices, so that MirroredStrategy can be tried everywhere.

    Imported only here: tests without TensorFlow start at once, and no test can use its devices before they are divided.
    """
    import tensorflow

    cpu = tensorflow.config.list_physical_devices("CPU")[0]
    if tensorflow.config.get_logical_device_configuration(cpu) is None:
        halves = [tensorflow.config.LogicalDeviceConfiguration()] * 2
        tensorflow.config.set_logical_device_configuration(cpu, halves)
    assert len(tensorflow.config.list_logical_devices("CPU")) >= 2, "TensorFlow was started before this fixture"
    return tensorflow


@pytest.fixture(autouse=True)
def separate_collectives() -> None:
    """Lets each test make a mirrored strategy of its own, whichever tests its process has run before.

    On CPUs its collectives are known by numbers that each strategy counts from the same beginning, and that a process
    remembers together with their shapes. TensorFlow's own tests do the same (distribute/strategy_combinations.py).
    """
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].distribute.MirroredStrategy._collective_key_base += 100_000


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    """A valid configuration, whose store and runs lie in `tmp_path` and do not exist yet."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_CONFIG.replace("RUNS", str(tmp_path / "runs")).replace("STORE", str(tmp_path / "store")))
    return path
