"""What a config.json says of a model, what of it Drumline refuses, and how a run's configuration is filled from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config_io import dump_config, load_config
from trainer.errors import ConfigError
from trainer.pretrained.settings import model_settings

GPT2 = {"model_type": "gpt2"}
LLAMA = {"model_type": "llama"}
MISTRAL = {"model_type": "mistral", "sliding_window": None}
BERT = {"model_type": "bert"}
T5 = {"model_type": "t5"}

RUN = """\
run: {name: small}
data:
  store: store
  train: [{path: text.txt}]
  sequence_length: 16
optimizer: {learning_rate: 3e-4}
train: {steps: 20, global_batch_size: 8}
"""


@pytest.mark.parametrize("theirs", [GPT2, LLAMA, MISTRAL, BERT, T5])
def test_what_is_not_said_is_as_transformers_has_it(theirs: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    said = transformers.AutoConfig.for_model(**theirs).to_dict()
    assert model_settings(theirs, "config.json") == model_settings(said, "config.json")


def test_older_and_newer_ways_to_say_where_rotary_positions_turn() -> None:
    for said in (
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ):
        assert model_settings({**LLAMA, **said}, "config.json")["rotary_base"] == 5e5


def test_t5_of_version_1_1_has_an_output_of_its_own() -> None:
    for said in ({"tie_word_embeddings": False}, {"tie_word_embeddings": True, "scale_decoder_outputs": False}):
        settings = model_settings({**T5, **said, "feed_forward_proj": "gated-gelu"}, "config.json")
        assert (settings["tied_output"], settings["activation"]) == (False, "gated_gelu")
    assert model_settings(T5, "config.json")["tied_output"] is True


def test_llamas_biases_are_all_or_none() -> None:
    assert model_settings({**LLAMA, "attention_bias": True, "mlp_bias": True}, "config.json")["biases"] is True


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"model_type": "bart"}, 'config.json: model_type: got "bart", expected one of gpt2, llama, mistral, bert, t5'),
        ({}, "model_type: got nothing, expected one of"),
        ({"model_type": ["gpt2"]}, 'model_type: got ["gpt2"], expected one of'),
        ({**GPT2, "activation_function": "silu"}, 'activation_function: got "silu", expected one of gelu, gelu_new'),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: got true, expected false"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights: got false, expected true"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention: got true"),
        ({**GPT2, "n_layer": "12"}, 'n_layer: got "12", expected a whole number above 0'),
        ({**GPT2, "n_layer": True}, "n_layer: got true, expected a whole number above 0"),
        ({**GPT2, "layer_norm_epsilon": None}, "layer_norm_epsilon: got nothing, expected a number"),
        ({**GPT2, "quantization_config": {"bits": 4}}, "quantization_config: got"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling: got the type "linear"'),
        ({**LLAMA, "rope_parameters": {"rope_type": "llama3"}}, 'rope_parameters: got the type "llama3"'),
        ({**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: got 0.5"),
        ({**LLAMA, "rope_interleaved": True}, "rope_interleaved: got true"),
        ({**LLAMA, "attention_bias": True}, "attention_bias: got true, expected false, as mlp_bias is"),
        ({**LLAMA, "mlp_bias": True}, "attention_bias: got nothing, expected true, as mlp_bias is"),
        ({**LLAMA, "hidden_act": "relu"}, 'hidden_act: got "relu", expected one of silu'),
        ({"model_type": "mistral"}, "sliding_window: got 4096, expected null, or at least max_position_embeddings"),
        (
            {**BERT, "position_embedding_type": "relative_key"},
            'position_embedding_type: got "relative_key", expected "absolute"',
        ),
        ({**BERT, "is_decoder": True}, "is_decoder: got true"),
        ({**BERT, "hidden_act": "gelu_fast"}, 'hidden_act: got "gelu_fast"'),
        ({**BERT, "tie_word_embeddings": False}, "tie_word_embeddings: got false"),
        ({**BERT, "hidden_dropout_prob": 0.0}, "dropout: got hidden_dropout_prob 0.0, attention_probs_dropout_prob 0.1"),
        ({**T5, "feed_forward_proj": "gated-relu"}, 'feed_forward_proj: got "gated-relu"'),
        ({**T5, "is_encoder_decoder": False}, "is_encoder_decoder: got false"),
    ],
)
def test_what_drumline_cannot_do_is_refused_by_name(theirs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        model_settings(theirs, "config.json")
    assert said in str(error.value)


def test_all_that_is_refused_is_told_at_once() -> None:
    theirs = {**LLAMA, "hidden_act": "relu", "rope_scaling": {"type": "yarn"}, "attention_bias": True}
    with pytest.raises(ConfigError) as error:
        model_settings(theirs, "config.json")
    assert len(error.value.complaints) == 3


def test_a_sliding_window_that_nothing_is_beyond_is_none() -> None:
    settings = model_settings({**MISTRAL, "sliding_window": 4096, "max_position_embeddings": 4096}, "config.json")
    assert settings["max_positions"] == 4096


def test_rates_of_dropout_that_differ_are_no_matter_where_the_run_has_its_own() -> None:
    theirs = {**BERT, "hidden_dropout_prob": 0.0}
    assert "dropout" in model_settings(theirs, "config.json", given={"dropout"})


def weights_folder(tmp_path: Path, **content: Any) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps({**GPT2, **sizes, **content}))
    return folder


def written(tmp_path: Path, model: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + f"model:\n  initialize_from: {tmp_path / 'weights'}\n{model}")
    return path


def test_a_configuration_is_filled_from_the_folder(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path)
    config = load_config(written(tmp_path, "  dropout: 0.2\n"))
    assert (config.model.width, config.model.num_layers, config.model.max_positions) == (32, 2, 64)
    assert config.model.dropout == 0.2
    assert (config.data.tokenizer.kind, config.data.tokenizer.path) == ("pretrained", str(folder))


def test_how_a_classifier_reads_an_encoder_is_the_run_s_own_choice(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps({**BERT, **sizes}))
    path = tmp_path / "run.yaml"
    path.write_text(
        "task: classification\n" + RUN.replace("data:", "data:\n  format: jsonl") + "checkpoint: {best_metric: accuracy}\n"
    )
    overrides = [f"model.initialize_from={folder}"]
    assert load_config(path, overrides).model.pooling == "first"
    assert load_config(path, [*overrides, "model.pooling=mean"]).model.pooling == "mean"


def test_the_folder_may_be_named_by_an_override(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    assert load_config(path, [f"model.initialize_from={folder}", "model.dropout=0.3"]).model.dropout == 0.3


def test_a_tokenizer_that_is_named_is_taken(tmp_path: Path) -> None:
    weights_folder(tmp_path)
    path = written(tmp_path, "")
    path.write_text(path.read_text().replace("length: 16", "length: 16\n  tokenizer: {kind: character}"))
    assert load_config(path).data.tokenizer.kind == "character"


def test_what_contradicts_the_folder_is_told_with_its_line(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path)
    path = written(tmp_path, "  width: 48\n  activation: relu\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, ["model.num_heads=8"])
    assert error.value.complaints == (
        f"{path}:10: model.width: got 48, expected 32, as {folder}/config.json has it; leave the key out",
        f"{path}:11: model.activation: got 'relu', expected 'gelu', as {folder}/config.json has it; leave the key out",
        f"model.num_heads=8: got 8, expected 4, as {folder}/config.json has it; leave the key out",
    )


def test_what_agrees_with_the_folder_may_be_said(tmp_path: Path) -> None:
    weights_folder(tmp_path)
    assert load_config(written(tmp_path, "  family: gpt\n  width: 32\n  feed_forward_width: 128\n")).model.width == 32


def test_a_folder_that_cannot_be_read_is_one_complaint(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert len(error.value.complaints) == 1
    assert error.value.complaints[0].startswith(
        f"{path}:9: model.initialize_from: {tmp_path}/weights/config.json: cannot be read"
    )


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, "\xff\xfe"])
def test_a_config_json_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    folder = weights_folder(tmp_path)
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config.json: (not valid JSON|got a list|got \[1\], expected an object)"):
        load_config(written(tmp_path, ""))


def test_what_does_not_fit_the_rest_is_told_with_the_folders_name(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path, n_positions=8)
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, ""))
    assert (
        str(error.value) == f"{folder}/config.json: model.max_positions: got 8, expected at least the 16 tokens of a sequence"
    )


def test_a_runs_own_configuration_does_without_the_folder(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path)
    config = load_config(written(tmp_path, ""))
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_config(config))
    (folder / "config.json").unlink()
    assert load_config(dumped) == config
