"""All weights of a run: heads of tasks, low-rank pairs, what is frozen, and how fast each layer learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import training_config
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.models.parameters import Parameter
from trainer.sizes import Sizes
from trainer.tasks.parameters import is_low_rank, run_parameters

VOCABULARY_SIZE = 50
BERT = {"family": "bert", "num_layers": 2, "num_heads": 2, "width": 16}


def config(task: str = "language_modeling", **sections: Any) -> Config:
    values = training_config(Path("unused"), "parameters").model_dump(mode="json")
    values["task"] = task
    values["data"]["format"] = "text" if "language" in task else "jsonl"
    model = sections.pop("model", values["model"])
    for section, changes in sections.items():
        values[section] |= changes
    return Config.model_validate(values | {"model": model})


def weights_of(task: str = "language_modeling", num_labels: int = 0, **sections: Any) -> dict[str, Parameter]:
    return run_parameters(config(task, **sections), Sizes(VOCABULARY_SIZE, num_labels))


def test_each_task_has_its_head() -> None:
    classification = weights_of("classification", 3, model=BERT)
    assert classification["classifier.kernel"].shape == (16, 3) and classification["pooler.kernel"].shape == (16, 16)
    assert "pooler.kernel" not in weights_of("classification", 3, model={**BERT, "pooling": "mean"})
    assert weights_of("question_answering", model=BERT, data={"window_overlap": 8})["span.kernel"].shape == (16, 2)
    assert weights_of("masked_language_modeling", model=BERT)["masked.bias"].shape == (VOCABULARY_SIZE,)
    decoder = weights_of("classification", 3, model={"num_layers": 1, "num_heads": 2, "width": 16, "tied_output": False})
    assert "output" not in decoder and "pooler.kernel" not in decoder and decoder["classifier.kernel"].shape == (16, 3)


@pytest.mark.parametrize(("num_labels", "multi_label", "outputs"), [(2, False, 1), (2, True, 2), (3, False, 3)])
def test_a_bag_of_embeddings_has_one_sigmoid_for_two_classes(num_labels: int, multi_label: bool, outputs: int) -> None:
    data = {"multi_label": multi_label}
    weights = weights_of("classification", num_labels, model={"family": "bag_of_embeddings", "width": 8}, data=data)
    assert weights["classifier.kernel"].shape == (8, outputs)


@pytest.mark.parametrize("targets", [["attention"], ["feed_forward"], ["attention", "feed_forward"]])
def test_low_rank_pairs_stand_beside_the_matrices_that_are_asked_for_and_they_alone_are_trained(targets: list[str]) -> None:
    model = BERT | {"lora": {"rank": 4, "targets": targets}}
    weights = weights_of("classification", 2, model=model)
    pairs = {name.rsplit(".", 1)[0] for name in weights if is_low_rank(name)}
    matrices = {"attention": ("query_key_value", "output"), "feed_forward": ("up", "down")}
    expected = {f"blocks.{layer}.{part}.{name}" for layer in range(2) for part in targets for name in matrices[part]}
    assert pairs == expected
    for name in pairs:
        inputs, outputs = weights[f"{name}.kernel"].shape
        assert weights[f"{name}.lora_down"].shape == (inputs, 4) and weights[f"{name}.lora_up"].shape == (4, outputs)
        assert weights[f"{name}.lora_up"].initializer == "zeros"
    trained = {name for name, weight in weights.items() if weight.is_trainable}
    assert trained == {name for name in weights if is_low_rank(name)} | {
        "pooler.kernel",
        "pooler.bias",
        "classifier.kernel",
        "classifier.bias",
    }


def test_frozen_weights_are_those_that_the_patterns_name() -> None:
    weights = weights_of(optimizer={"freeze": ["*embedding", "blocks.0.*"]})
    frozen = {name for name, weight in weights.items() if not weight.is_trainable}
    assert frozen == {name for name in weights if "embedding" in name or name.startswith("blocks.0.")}


def test_a_pattern_that_names_no_weight_and_one_that_leaves_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.freeze\[1\]: got 'block.0.\*', which no weight answers to"):
        weights_of(optimizer={"freeze": ["blocks.1.*", "block.0.*"]})
    with pytest.raises(ConfigError, match="leave nothing to train"):
        weights_of(optimizer={"freeze": ["*"]})


def test_each_layer_learns_more_slowly_than_the_one_above_it() -> None:
    weights = weights_of("classification", 2, model=BERT, optimizer={"layer_decay": 0.5})
    scales = {name: weight.rate_scale for name, weight in weights.items()}
    assert scales["classifier.kernel"] == scales["pooler.kernel"] == 1.0
    assert scales["blocks.1.attention.output.kernel"] == 0.5
    assert scales["blocks.0.feed_forward_norm.gain"] == 0.25
    assert scales["token_embedding"] == scales["embedding_norm.gain"] == 0.125


def test_an_encoder_lies_below_its_decoder() -> None:
    model = {"family": "encoder_decoder", "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "width": 16}
    data = {"format": "jsonl"}
    weights = weights_of("translation", model=model, data=data, optimizer={"layer_decay": 0.5})
    assert weights["decoder.blocks.0.cross_attention.query.kernel"].rate_scale == 0.5
    assert weights["encoder.blocks.1.attention.output.kernel"].rate_scale == 0.25
    assert weights["encoder.final_norm.gain"].rate_scale == 0.25
    assert weights["encoder.blocks.0.attention.output.kernel"].rate_scale == 0.125
    assert weights["token_embedding"].rate_scale == 0.0625
