"""The report of `drumline check`: its arithmetic, and what it says where something is not known yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.check import Memory, estimate_memory, report
from trainer.config import Config, plan_batches
from trainer.config_io import load_config
from trainer.data.manifest import Dataset, Part, StoreManifest, store_settings, write_manifest
from trainer.errors import DataError
from trainer.models.parameters import parameters

ROOT = Path(__file__).parents[2]


def memory(config: Config, num_replicas: int, vocabulary_size: int) -> Memory:
    weights = parameters(config.model, vocabulary_size, config.data.sequence_length)
    return estimate_memory(config, plan_batches(config.train, num_replicas), weights, vocabulary_size)


def prepare(config: Config, num_tokens: int) -> None:
    """A store's manifest, as `prepare` would write it."""
    store = Path(config.data.store)
    part = Part("train-0.arrow", num_documents=3, num_tokens=num_tokens, num_bytes=1, sha256="")
    dataset = Dataset("text.txt", None, (part,), ())
    store.mkdir()
    write_manifest(StoreManifest(1, store_settings(config), "", 300, 0, "uint16", (dataset,), ()), store)


def test_gpt2_has_as_many_parameters_as_gpt2() -> None:
    """124.4 million with biases, as published; the recipe, like nanoGPT, has none."""
    recipe = load_config(ROOT / "configs/gpt2-124m.yaml", ["model.biases=true"])
    assert "parameters   124,439,808" in report(recipe, 8)


def test_memory_adds_up_by_hand(small_config: Path) -> None:
    # 2 layers, 2 heads of 4, width 8, length 16, 300 tokens; 8 rows on 2 replicas in micro-batches of 2: one row each.
    config = load_config(small_config, ["train.micro_batch_size=2", "train.precision=bfloat16"])
    elements = 300 * 8 + 16 * 8 + 2 * (4 * 8 + 8 * 24 + 24 + 8 * 8 + 8 + 8 * 32 + 32 + 32 * 8 + 8) + 2 * 8
    a_layer = 4 * 8 + 24 + 2 * 16 + 8 + 32 + 32
    assert memory(config, 2, 300) == Memory(
        weights=4 * elements,
        gradients=8 * elements,
        moments=8 * elements,
        compute_copies=2 * elements,
        activations=16 * (2 * (2 * a_layer + 2 * 8) + 8 * 300),
    )


def test_without_accumulation_and_in_float32_there_is_one_of_each(small_config: Path) -> None:
    used = memory(load_config(small_config), 2, 300)
    assert used.gradients == used.weights
    assert used.compute_copies == 0


def test_epochs_are_counted_where_the_store_is_prepared(small_config: Path) -> None:
    config = load_config(small_config)
    prepare(config, num_tokens=10 * 8 * 16 + 1)
    printed = report(config, 1)
    assert "2.00 in the run; one takes 10.0 steps" in printed
    assert "300 tokens, as the store has them" in printed


def test_a_store_that_is_not_prepared_is_said(small_config: Path) -> None:
    printed = report(load_config(small_config), 1)
    assert "is not prepared yet" in printed
    assert "300 tokens, as configured" in printed


def test_a_store_too_small_for_one_sequence_is_said(small_config: Path) -> None:
    config = load_config(small_config)
    prepare(config, num_tokens=16)
    assert "has not even one sequence of 16 tokens" in report(config, 1)


def test_a_store_made_with_other_settings_is_refused(small_config: Path) -> None:
    prepare(load_config(small_config), num_tokens=1_000)
    with pytest.raises(DataError, match=r"was prepared with data\.format"):
        report(load_config(small_config, ["data.format=lines"]), 1)


def test_a_damaged_store_is_the_users_to_mend(small_config: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        report(load_config(small_config), 1)


def test_a_pretrained_tokenizer_says_how_many_tokens_it_has(small_config: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    overrides = [f"data.tokenizer={{kind: pretrained, path: {path}}}"]
    assert "a guess" in report(load_config(small_config, overrides), 1)
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 5}]}))
    assert "6 tokens, as" in report(load_config(small_config, overrides), 1)
