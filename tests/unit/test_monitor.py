"""What a run tells: the fields of metrics.jsonl, charts that TensorBoard can read, figures of the machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training import json_lines, training_config
from trainer.config import Config
from trainer.evaluate import Result
from trainer.models.parameters import flops_per_token
from trainer.monitor import throughput
from trainer.monitor.monitor import Monitor
from trainer.run_directory import RunDirectory
from trainer.sizes import Sizes

pytestmark = pytest.mark.usefixtures("tensorflow")

VOCABULARY_SIZE = 50


def config(tmp_path: Path, every: int = 1, **train: Any) -> Config:
    return training_config(tmp_path, "monitored", train={"steps": 20, **train}, logging={"every": every})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """The folder of a run that has begun."""
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    directory = RunDirectory(tmp_path / "runs" / "monitored")
    directory.begin(config(tmp_path), tokenizer, 0, ["drumline", "train"], {"backend": "single"})
    return directory


def history(steps: Iterable[int], offset: float = 0.0) -> dict[str, np.ndarray]:
    """As the inner loop returns it; the loss of step s is s + offset."""
    steps = np.array(list(steps), np.float32)
    return {
        "loss": steps + np.float32(offset),
        "num_tokens": np.full_like(steps, 256.0),
        "gradient_norm": np.full_like(steps, 0.5),
        "learning_rate": np.full_like(steps, 1e-3),
        "loss_scale": np.full_like(steps, 1024.0),
        "data_wait_seconds": np.full(steps.shape, 0.001),
        "is_skipped": np.zeros(steps.shape, bool),
        "sample_ids": np.zeros((len(steps), 1, 1, 8), np.int64),
    }


def result(loss: float) -> Result:
    """As an evaluation of 512 tokens returns it."""
    return Result({"loss": loss, "perplexity": float(np.exp(loss))}, 512, "num_tokens", seconds=0.25, is_whole=True)


def charts(run: RunDirectory, split: str, tag: str = "loss") -> dict[int, float]:
    """A chart as TensorBoard shows it: what was purged is gone, and no step may be there twice."""
    accumulator = EventAccumulator(str(run.tensorboard / split), size_guidance={"scalars": 0})
    accumulator.Reload()
    events = accumulator.Scalars(tag)
    assert len({event.step for event in events}) == len(events), "a step is in the chart twice"
    return {event.step: event.value for event in events}


def test_each_logged_step_has_the_fields_that_the_design_names(tmp_path: Path, run: RunDirectory) -> None:
    with Monitor.of_run(config(tmp_path), Sizes(VOCABULARY_SIZE), 1, run, 0) as monitor:
        monitor.write_steps(0, history([1, 2, 3, 4]), seconds=2.0)
        monitor.write_validation(4, result(3.0))
    *train, validation = json_lines(run.metrics)
    assert [line["step"] for line in train] == [1, 2, 3, 4]
    assert train[0].keys() == {
        "step",
        "split",
        "loss",
        "learning_rate",
        "gradient_norm",
        "num_tokens",
        "tokens_per_second",
        "step_seconds",
        "data_wait_seconds",
        "skipped_updates",
        "model_flops_utilization",
        "peak_memory_bytes",
    }
    assert train[2]["split"] == "train" and train[2]["loss"] == 3.0
    assert train[0]["tokens_per_second"] == 4 * 256 / 2.0
    assert train[0]["step_seconds"] == 0.5
    assert train[0]["data_wait_seconds"] == pytest.approx(0.001)
    assert 1e7 < train[0]["peak_memory_bytes"] < 1e12
    assert (validation["step"], validation["split"], validation["loss"]) == (4, "validation", 3.0)
    assert validation["perplexity"] == pytest.approx(np.exp(3.0))


def test_utilization_is_the_models_operations_over_the_devices_peak(tmp_path: Path, run: RunDirectory) -> None:
    settings = config(tmp_path)
    with Monitor.of_run(settings, Sizes(VOCABULARY_SIZE), 2, run, 0) as monitor:
        monitor.write_steps(0, history([1, 2]), seconds=0.5)
        peak = monitor.peak_flops_per_second
    by_hand = 2 * 256 / 0.5 * flops_per_token(settings.model, VOCABULARY_SIZE, 32) / peak
    assert json_lines(run.metrics)[0]["model_flops_utilization"] == pytest.approx(by_hand)
    assert 0 < by_hand < 1


def test_the_first_the_last_and_every_so_many_steps_are_logged(tmp_path: Path, run: RunDirectory) -> None:
    with Monitor.of_run(config(tmp_path, every=6), Sizes(VOCABULARY_SIZE), 1, run, 0) as monitor:
        for first in range(0, 20, 4):
            monitor.write_steps(first, history(range(first + 1, first + 5)), seconds=1.0)
    assert [(line["step"], line["loss"]) for line in json_lines(run.metrics)] == [
        (1, 1.0),
        (6, 6.0),
        (12, 12.0),
        (18, 18.0),
        (20, 20.0),
    ]


def test_the_loss_scale_is_told_in_float16_alone(tmp_path: Path, run: RunDirectory) -> None:
    with Monitor.of_run(config(tmp_path, precision="float16"), Sizes(VOCABULARY_SIZE), 1, run, 0) as monitor:
        monitor.write_steps(0, history([1]), seconds=1.0)
    assert json_lines(run.metrics)[0]["loss_scale"] == 1024.0


def test_tensorboard_shows_train_and_validation_in_one_chart(tmp_path: Path, run: RunDirectory) -> None:
    with Monitor.of_run(config(tmp_path), Sizes(VOCABULARY_SIZE), 1, run, 0) as monitor:
        monitor.write_steps(0, history([1, 2, 3]), seconds=1.0)
        monitor.write_validation(3, result(2.5))
    assert charts(run, "train") == {1: 1.0, 2: 2.0, 3: 3.0}
    assert charts(run, "validation") == {3: 2.5}
    assert charts(run, "train", "gradient_norm") == {1: 0.5, 2: 0.5, 3: 0.5}
    assert {path.name for path in run.tensorboard.iterdir()} == {"train", "validation"}


def test_after_a_resume_no_step_is_there_twice(tmp_path: Path, run: RunDirectory) -> None:
    """A run that was killed after step 9 and goes on from its checkpoint of step 4, with other losses to tell them apart."""
    settings = config(tmp_path)
    with Monitor.of_run(settings, Sizes(VOCABULARY_SIZE), 1, run, 0) as monitor:
        monitor.write_steps(0, history(range(1, 10)), seconds=1.0)
        monitor.write_validation(4, result(2.5))
        monitor.write_validation(8, result(2.25))
    with run.metrics.open("a") as file:
        file.write('{"step": 10, "split": "tra')
    (tmp_path / "tokenizer.json").write_text("{}")
    run.begin(settings, tmp_path / "tokenizer.json", 4, ["drumline", "train"], {})
    with Monitor.of_run(settings, Sizes(VOCABULARY_SIZE), 1, run, 4) as monitor:
        monitor.write_steps(4, history([5, 6], offset=100.0), seconds=1.0)
    expected = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 105.0, 6: 106.0}
    lines = [line for line in json_lines(run.metrics) if line["split"] == "train"]
    assert [(line["step"], line["loss"]) for line in lines] == list(expected.items())
    assert charts(run, "train") == expected
    assert charts(run, "validation") == {4: 2.5}
    assert [start["step"] for start in json.loads(run.history.read_text())["starts"]] == [0, 4]


def test_each_step_is_there_to_be_read_as_soon_as_it_is_written(tmp_path: Path, run: RunDirectory) -> None:
    with Monitor.of_run(config(tmp_path), Sizes(VOCABULARY_SIZE), 1, run, 0) as monitor:
        monitor.write_steps(0, history([1]), seconds=1.0)
        assert [line["step"] for line in json_lines(run.metrics)] == [1]
        assert charts(run, "train") == {1: 1.0}


def test_a_monitor_without_writers_writes_nothing(tmp_path: Path) -> None:
    with Monitor(config(tmp_path), Sizes(VOCABULARY_SIZE), 2, writers=()) as monitor:
        monitor.write_steps(0, history([1]), seconds=1.0)
        monitor.write_validation(1, result(2.5))
    assert not list(tmp_path.iterdir())


def test_a_log_has_one_line_a_step(tmp_path: Path, run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        Monitor.of_run(config(tmp_path), Sizes(VOCABULARY_SIZE), 1, run, 0) as monitor,
    ):
        monitor.write_steps(0, history([1, 2]), seconds=1.0)
        monitor.write_validation(2, result(2.5))
    told = [record.getMessage() for record in caplog.records if record.name.startswith("trainer.monitor")]
    assert len(told) == 3
    assert "step  1/20" in told[0] and "tokens/s" in told[0] and "validation loss 2.5" in told[2]


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "float32", 156.0),
        ("NVIDIA A10", "float16", 125.0),
        ("NVIDIA A10", "bfloat16", 125.0),
        ("NVIDIA A10G", "bfloat16", 70.0),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.0),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA L40S", "bfloat16", 362.0),
        ("NVIDIA L40", "bfloat16", 181.0),
        ("Tesla V100-SXM2-16GB", "float16", 125.0),
        ("Tesla T4", "float32", 8.1),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
    ],
)
def test_the_peak_of_a_known_gpu_is_its_data_sheets(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, teraflops: float
) -> None:
    """There is no GPU here: what TensorFlow would say of one is put in its place."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [SimpleNamespace(name="GPU:0")])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: {"device_name": name})
    peak, source = throughput.peak_flops_per_second(precision)
    assert peak == pytest.approx(teraflops * 1e12)
    assert "data sheet" in source


def test_the_peak_of_a_cpu_is_measured() -> None:
    peak, source = throughput.peak_flops_per_second("float32")
    assert 1e9 < peak < 1e14
    assert source == "measured matrix product"
