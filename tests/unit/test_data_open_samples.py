"""From prepared stores to samples: what is augmented and what is not, and what several data sets have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import MODELS
from trainer.config import Config
from trainer.data.prepare import prepare
from trainer.data.store import open_samples
from trainer.data.tokenizer import Tokenizer
from trainer.errors import ConfigError

TEXTS = [f"{'a film that moves ' * (1 + number % 3)}number {number}" for number in range(12)]


def prepared(tmp_path: Path, family: str = "bert", task: str = "classification", **data: Any) -> Config:
    """A store of two training sources of unequal texts and one for validation, which has those of the first."""
    for name, texts in (("first", TEXTS), ("second", ["a film"] * 9)):
        records = [{"text": text, "label": f"label {number % 2}"} for number, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    first, second = ({"path": str(tmp_path / f"{name}.jsonl")} for name in ("first", "second"))
    config = Config.model_validate(
        {
            "run": {"name": "test"},
            "task": task,
            "data": {
                "store": str(tmp_path / "store"),
                "format": "jsonl",
                "train": [first, second],
                "validation": [first],
                "sequence_length": 24,
                "tokenizer": {"kind": "wordpiece", "vocabulary_size": 320},
                **data,
            },
            "model": MODELS[family],
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1, "global_batch_size": 4},
        }
    )
    prepare(config, num_processes=1)
    return config


@pytest.mark.parametrize("pack", [False, True])
def test_evaluation_is_never_augmented(tmp_path: Path, pack: bool) -> None:
    (tmp_path / "back.tsv").write_text(f"{TEXTS[0]}\tthe moving movie\n")
    (tmp_path / "words.tsv").write_text("film\tmovie\n")
    augmentation = {
        "token_dropout": 0.4,
        "token_swap": 0.4,
        "span_masking": 0.4,
        "replacement": 0.9,
        "replacements": str(tmp_path / "words.tsv"),
        "back_translation": 0.9,
        "back_translations": str(tmp_path / "back.tsv"),
    }
    config = prepared(tmp_path, pack=pack, augmentation=augmentation)
    tokenizer = Tokenizer.load(tmp_path / "store" / "tokenizer.json")
    (validation,) = open_samples(config, "validation")
    indices = np.arange(validation.num_samples)
    arrays = validation.gather(indices, indices)
    texts = [
        tokenizer.decode(tokens[numbers == number].tolist())
        for tokens, numbers in zip(arrays["inputs"], arrays["segments"], strict=True)
        for number in range(1, numbers.max() + 1)
    ]
    assert sorted(texts) == sorted(TEXTS)
    train, _ = open_samples(config, "train")
    changed, again, others = (train.gather(indices[:2], indices[:2] + draw)["inputs"] for draw in (0, 0, 50))
    assert np.array_equal(changed, again) and not np.array_equal(changed, others)
    assert set(train.features) == set(validation.features)


def test_samples_of_all_data_sets_of_a_split_have_one_shape(tmp_path: Path) -> None:
    config = prepared(tmp_path, pack=True)
    first, second = open_samples(config, "train")
    assert dict(first.features) == dict(second.features)
    num_places = first.features["labels"].shape[0]
    counts = [
        (each.gather(np.arange(each.num_samples), np.arange(each.num_samples))["labels"] >= 0).sum(1)
        for each in (first, second)
    ]
    assert num_places == max(counts[0].max(), counts[1].max()) > min(counts[0].max(), counts[1].max())
    assert (counts[0].sum(), counts[1].sum()) == (12, 9)


@pytest.mark.parametrize("pack", [True, False, "best_fit"])
def test_a_masked_model_reads_streams_in_every_packing(tmp_path: Path, pack: bool | str) -> None:
    config = prepared(tmp_path, task="masked_language_modeling", pack=pack)
    samples = open_samples(config, "train")
    assert len(samples) == 2
    for each in samples:
        arrays = each.gather(np.arange(each.num_samples), np.arange(each.num_samples))
        assert ("positions" in arrays) == (pack == "best_fit")
        assert ((arrays["targets"] >= 0).sum(1) > 0).all()


def test_a_masked_model_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    config = prepared(tmp_path, task="masked_language_modeling", tokenizer={"kind": "character"})
    with pytest.raises(ConfigError, match="has no mask token"):
        open_samples(config, "train")
