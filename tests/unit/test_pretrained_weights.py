"""Weights that `transformers` saved compute in our models what they compute in its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from pretrained_folders import (
    TASKS,
    VOCABULARY_SIZE,
    edit_config,
    largest_difference,
    our_logits,
    random_model,
    run_of,
    some_lengths,
    some_tokens,
    their_logits,
)

from trainer.errors import CheckpointError, ConfigError
from trainer.pretrained.reading import open_pretrained
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters


def begin(tensorflow: Any, config: Any, num_labels: int = 0) -> dict[str, Any]:
    """A run's weights as they begin."""
    from trainer.training_state import create_state, reset_state

    state = create_state(config, Sizes(VOCABULARY_SIZE, num_labels))
    reset_state(config, state)
    return state.weights


def difference(tensorflow: Any, kind: str, model: Any, folder: Path, tmp_path: Path) -> float:
    config = run_of(folder, tmp_path, TASKS[kind])
    tokens, lengths = some_tokens(), some_lengths()
    targets = some_tokens(1, 7) if kind.startswith("t5") else None
    theirs = their_logits(model, tokens, lengths, targets)
    ours = our_logits(tensorflow, config, begin(tensorflow, config), tokens, lengths, targets)
    return largest_difference(ours, theirs, lengths if targets is None else None)


@pytest.mark.parametrize("kind", TASKS)
def test_weights_in_one_file_compute_the_same_logits(tensorflow: Any, tmp_path: Path, kind: str) -> None:
    model = random_model(kind)
    model.save_pretrained(tmp_path / "folder")
    assert difference(tensorflow, kind, model, tmp_path / "folder", tmp_path) <= 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5"])
def test_weights_in_many_files_compute_the_same_logits(tensorflow: Any, tmp_path: Path, kind: str) -> None:
    model = random_model(kind)
    model.save_pretrained(tmp_path / "folder", max_shard_size="20KB")
    assert not (tmp_path / "folder/model.safetensors").exists()
    assert difference(tensorflow, kind, model, tmp_path / "folder", tmp_path) <= 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_become_float32(tensorflow: Any, tmp_path: Path, dtype: str) -> None:
    import torch

    model = random_model("llama").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "folder")
    # Read again, since the model's frequencies of rotary positions became narrow too.
    wide = type(model).from_pretrained(tmp_path / "folder", dtype=torch.float32).eval()
    assert difference(tensorflow, "llama", wide, tmp_path / "folder", tmp_path) <= 1e-4


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "language_modeling"), ("bert", "masked_language_modeling")])
def test_names_may_do_without_the_prefix(tensorflow: Any, tmp_path: Path, kind: str, task: str) -> None:
    model = random_model(kind)
    model.save_pretrained(tmp_path / "whole")
    inner = model.transformer if kind == "gpt2" else model.bert
    inner.save_pretrained(tmp_path / "inner")
    whole, bare = (begin(tensorflow, run_of(tmp_path / name, tmp_path, task)) for name in ("whole", "inner"))
    trunk = [name for name in whole if not name.startswith("masked.")]
    assert all(np.array_equal(whole[name].numpy(), bare[name].numpy()) for name in trunk)


def test_the_head_of_a_task_is_taken_where_it_is_there_and_else_begins_random(
    tensorflow: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random_model("bert").save_pretrained(tmp_path / "folder")
    parameters = run_parameters(
        config := run_of(tmp_path / "folder", tmp_path, "classification"), Sizes(VOCABULARY_SIZE, num_labels=3)
    )
    with caplog.at_level(logging.INFO):
        pretrained = open_pretrained(config, parameters)
    assert pretrained.random == ["pooler.kernel", "pooler.bias", "classifier.kernel", "classifier.bias"]
    assert "they begin random: pooler.kernel" in caplog.text
    averaging = run_of(tmp_path / "folder", tmp_path, "classification", ", pooling: mean")
    head = run_parameters(averaging, Sizes(VOCABULARY_SIZE, num_labels=3))
    assert open_pretrained(averaging, head).random == ["classifier.kernel", "classifier.bias"]
    masked = run_of(tmp_path / "folder", tmp_path, "masked_language_modeling")
    assert "masked.transform.kernel" in open_pretrained(masked, run_parameters(masked, Sizes(VOCABULARY_SIZE)))


@pytest.mark.parametrize(("num_labels", "is_taken"), [(3, True), (2, False)])
def test_a_classifier_is_taken_where_it_has_as_many_classes(tmp_path: Path, num_labels: int, is_taken: bool) -> None:
    import transformers

    config = random_model("bert").config
    config.num_labels = 3
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "folder")
    run = run_of(tmp_path / "folder", tmp_path, "classification")
    pretrained = open_pretrained(run, run_parameters(run, Sizes(VOCABULARY_SIZE, num_labels)))
    assert "pooler.kernel" in pretrained
    assert ("classifier.kernel" in pretrained) is is_taken


def test_only_low_rank_pairs_and_heads_begin_anew_beside_pretrained_weights(tensorflow: Any, tmp_path: Path) -> None:
    model = random_model("llama")
    model.save_pretrained(tmp_path / "folder")
    config = run_of(tmp_path / "folder", tmp_path, "language_modeling", ", lora: {rank: 2}")
    parameters = run_parameters(config, Sizes(VOCABULARY_SIZE))
    pretrained = open_pretrained(config, parameters)
    assert {name.rpartition(".")[2] for name in parameters if name not in pretrained} == {"lora_down", "lora_up"}
    tokens, lengths = some_tokens(), some_lengths()
    ours = our_logits(tensorflow, config, begin(tensorflow, config), tokens, lengths)
    assert largest_difference(ours, their_logits(model, tokens, lengths), lengths) <= 1e-4


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    random_model("llama").save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder/model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"][:, :40].contiguous()
    tensors["model.layers.0.self_attn.q_norm.weight"] = tensors["model.layers.0.input_layernorm.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    config = run_of(tmp_path / "folder", tmp_path, "language_modeling")
    with pytest.raises(CheckpointError) as error:
        open_pretrained(config, run_parameters(config, Sizes(VOCABULARY_SIZE)))
    for said in (
        "norm.weight is missing (final_norm.gain)",
        "model.layers.1.mlp.down_proj.weight (32, 40) does not make up blocks.1.feed_forward.down.kernel (48, 32)",
        "model.layers.0.self_attn.q_norm.weight is unexpected",
    ):
        assert said in str(error.value)


def test_more_tokens_than_the_weights_have_is_told(tmp_path: Path) -> None:
    random_model("gpt2").save_pretrained(tmp_path / "folder")
    config = run_of(tmp_path / "folder", tmp_path, "language_modeling")
    with pytest.raises(CheckpointError, match="the tokenizer has more tokens than the weights"):
        open_pretrained(config, run_parameters(config, Sizes(VOCABULARY_SIZE + 1)))


def test_an_output_that_is_said_to_be_tied_and_is_not_is_refused(tmp_path: Path) -> None:
    random_model("gpt2_untied").save_pretrained(tmp_path / "folder")
    edit_config(tmp_path / "folder", tie_word_embeddings=True)
    config = run_of(tmp_path / "folder", tmp_path, "language_modeling")
    with pytest.raises(CheckpointError, match=r"lm_head.weight is not transformer.wte.weight, although config.json says"):
        open_pretrained(config, run_parameters(config, Sizes(VOCABULARY_SIZE)))


def test_a_folder_that_was_replaced_since_is_refused(tmp_path: Path) -> None:
    random_model("gpt2").save_pretrained(tmp_path / "folder")
    config = run_of(tmp_path / "folder", tmp_path, "language_modeling")
    edit_config(tmp_path / "folder", activation_function="relu")
    with pytest.raises(ConfigError, match=r"of another model than the run: activation is relu, and model.activation gelu"):
        open_pretrained(config, run_parameters(config, Sizes(VOCABULARY_SIZE)))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    random_model("gpt2").save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder/model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].to(torch.int8)
    save_file(tensors, path, {"format": "pt"})
    config = run_of(tmp_path / "folder", tmp_path, "language_modeling")
    with pytest.raises(CheckpointError, match="is of type I8 instead of F32, F16 or BF16"):
        open_pretrained(config, run_parameters(config, Sizes(VOCABULARY_SIZE)))


def test_a_run_that_was_loaded_has_what_config_json_says(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path / "folder")
    model = run_of(tmp_path / "folder", tmp_path, "language_modeling").model
    written = json.loads((tmp_path / "folder/config.json").read_text())
    assert (model.width, model.num_key_value_heads) == (written["hidden_size"], written["num_key_value_heads"])
    assert (model.rotary_base, model.max_positions, model.normalization) == (50_000.0, 64, "rms_norm")
