"""Runs that begin from pretrained weights: trained, gone on with when the folder is gone, rolled back, and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import (
    BIN,
    checked,
    largest_difference,
    run_command,
    run_path,
    train_losses,
    training_config,
    write_config,
    write_texts,
)
from trainer.checkpoint import choose_checkpoint, read_weights
from trainer.cli import main
from trainer.config import Config
from trainer.config_io import load_config
from trainer.distribution import connect
from trainer.pretrained.names import origins
from trainer.pretrained.settings import read_settings
from trainer.pretrained.tensor_files import TensorFiles
from trainer.safetensors_file import write_tensors
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": 128, "resid_pdrop": 0.0}
GPT2 |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture
def prepared(tensorflow: Any, tmp_path: Path) -> Path:
    """Texts, a token store, and a folder of random weights in Hugging Face's format."""
    write_texts(tmp_path, 4_000)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT2))
    config = pretrained_config(tmp_path, "any")
    assert main(["prepare", str(write(config, tmp_path)), "--processes", "1"]) == 0
    generator = np.random.default_rng(0)
    parameters = run_parameters(config, Sizes(100))
    with (folder / "model.safetensors").open("wb") as file:
        write_tensors(
            file,
            {
                f"transformer.{origin.names[0]}": generator.normal(0.0, 0.1, parameters[name].shape).astype(np.float32)
                for name, origin in origins("gpt2", config.model, parameters).items()
            },
        )
    return tmp_path


def pretrained_config(directory: Path, name: str, **sections: Any) -> Config:
    """A small run that begins from the folder `weights`, as a file that is filled from it has it."""
    model = {**read_settings(directory / "weights"), "initialize_from": str(directory / "weights")}
    frozen = {"freeze": ["token_embedding"]}
    return training_config(
        directory,
        name,
        model=model,
        **{"optimizer": frozen, "train": {"steps": 2, "steps_per_loop": 1}, "checkpoint": {"every": 1}, **sections},
    )


def write(config: Config, directory: Path) -> Path:
    return write_config(config, directory / "config.yaml")


def weights_of(config: Config) -> dict[str, np.ndarray]:
    return read_weights(choose_checkpoint(run_path(config) / "checkpoints", "latest"))


@pytest.mark.parametrize("backend", ["single", "mirrored"])
def test_a_run_begins_from_the_folder_and_needs_it_no_longer(
    prepared: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    distribution = {"backend": backend} | ({"num_replicas": 2} if backend == "mirrored" else {})
    config = pretrained_config(prepared, backend, distribution=distribution)
    assert main(["train", str(write(config, prepared))]) == 0
    begun = TensorFiles(prepared / "weights").floats("transformer.wte.weight")
    trained = weights_of(config)
    assert np.array_equal(trained["token_embedding"], begun)  # it was frozen
    up = TensorFiles(prepared / "weights").floats("transformer.h.0.mlp.c_fc.weight")
    moved = np.abs(trained["blocks.0.feed_forward.up.kernel"] - up).max()
    assert 0.0 < moved < 0.02  # two steps from there
    shutil.rmtree(prepared / "weights")
    run = run_path(config)
    # On one device: a process makes no second strategy.
    elsewhere = ["distribution.backend=single", "distribution.num_replicas=null"]
    assert main(["train", str(run / "config.yaml"), "train.steps=3", *elsewhere]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["predict", str(run), "--text", "The", "--max-tokens", "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_tokens"] <= 2


@pytest.mark.processes
@pytest.mark.parametrize("backend", ["multiworker", "horovod"])
def test_two_processes_begin_from_the_folder_as_one_does(prepared: Path, tmp_path: Path, backend: str) -> None:
    losses = {}
    for name in ("single", backend):
        config = pretrained_config(prepared, name, distribution={"backend": name})
        path = str(write_config(config, tmp_path / f"{name}.yaml"))
        verb = ["train", path] if name == "single" else ["launch", "local", path, "--workers", "2"]
        checked(run_command([str(BIN / "drumline"), *verb]))
        losses[name] = train_losses(run_path(config))
    assert len(losses["single"]) == 2
    assert largest_difference(losses[backend], losses["single"]) <= 1e-5


def test_weights_that_do_not_fit_end_the_run_before_its_first_step(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = pretrained_config(prepared, "unfit")
    path = prepared / "weights/model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert main(["train", str(write(config, prepared))]) == 2
    assert "is it cut short" in capsys.readouterr().err
    assert not (run_path(config) / "checkpoints").exists()


def test_a_run_that_goes_back_to_its_beginning_goes_back_to_the_folder(prepared: Path) -> None:
    from trainer.resume import roll_back
    from trainer.run_directory import RunDirectory
    from trainer.training_state import create_state

    config = pretrained_config(prepared, "back")
    distribution = connect(config.distribution)
    state = create_state(config, Sizes(100))
    progress = roll_back(RunDirectory.of(config), config, state, distribution, 5)
    begun = TensorFiles(prepared / "weights").floats("transformer.wte.weight")
    assert progress.step == 0
    assert np.array_equal(state.weights["token_embedding"].numpy(), begun)


def test_export_writes_both_formats(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = pretrained_config(prepared, "exported")
    assert main(["train", str(write(config, prepared))]) == 0
    run = str(run_path(config))
    for kind, file in (("huggingface", "model.safetensors"), ("savedmodel", "saved_model.pb")):
        assert main(["export", run, "--format", kind, "--output", str(prepared / kind)]) == 0
        assert (prepared / kind / file).is_file()
        assert f"{prepared / kind}: {kind}, of step 2" in capsys.readouterr().out
    assert main(["export", run, "--format", "huggingface", "--output", str(prepared / "huggingface")]) == 2
    assert "is there already, and not empty" in capsys.readouterr().err
    # What was exported is what another run can begin from.
    again = prepared / "again.yaml"
    text = f"""
run: {{name: again, directory: {prepared}/runs}}
data:
  store: {prepared}/store-again
  format: lines
  train: [{{path: {prepared}/train.txt}}]
  sequence_length: 32
model: {{initialize_from: {prepared}/huggingface}}
optimizer: {{learning_rate: 1e-3}}
train: {{steps: 1, global_batch_size: 4, compile: graph}}
"""
    again.write_text(text)
    assert load_config(again).model.width == 16
    assert main(["prepare", str(again), "--processes", "1"]) == 0
    assert main(["train", str(again)]) == 0
