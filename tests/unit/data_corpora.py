"""Text and configurations for the tests of `trainer.data`."""

from __future__ import annotations

import json
import pydoc_data.topics
import random
from pathlib import Path
from typing import Any

from trainer.config import Config

TEXT = "\n\n".join(pydoc_data.topics.topics.values())
CHARACTER: dict[str, Any] = {"kind": "character"}
BPE: dict[str, Any] = {"kind": "bpe", "vocabulary_size": 500}
WORD: dict[str, Any] = {"kind": "word", "vocabulary_size": 300, "lowercase": True}
WORDPIECE: dict[str, Any] = {"kind": "wordpiece", "vocabulary_size": 300, "lowercase": True}


def data_config(
    store: Path,
    train: list[dict[str, Any]],
    validation: tuple[dict[str, Any], ...] = (),
    *,
    file_format: str = "text",
    field: str | int = "text",
    tokenizer: dict[str, Any] = CHARACTER,
    task: str = "language_modeling",
    family: str = "gpt",
    options: dict[str, Any] | None = None,
) -> Config:
    """A whole configuration, of which only the data matter here; `options` are further ones of the section `data`."""
    data = {
        "store": str(store),
        "train": train,
        "validation": list(validation),
        "format": file_format,
        "fields": {"text": field},
        "sequence_length": 16,
        "tokenizer": tokenizer,
        **(options or {}),
    }
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "task": task,
            "data": data,
            "model": {"family": family, "num_layers": 1, "num_heads": 1, "width": 8},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1, "global_batch_size": 8},
        }
    )


def write_corpus(path: Path, num_bytes: int, seed: int = 0) -> Path:
    """A file of about `num_bytes` of shuffled English paragraphs."""
    paragraphs = [paragraph + "\n\n" for paragraph in TEXT.split("\n\n")]
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            file.write("".join(generator.sample(paragraphs, 500)))
    return path


def store_contents(store: Path) -> dict[str, bytes]:
    """What readers of a store see: everything but the records of when the inputs changed."""
    files = [store / "manifest.json", store / "tokenizer.json", *sorted(store.glob("*/*/*.arrow"))]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path)}


def films(folder: Path, num_train: int = 60, labels: tuple[Any, ...] = ("good", "bad", "fair")) -> list[dict[str, Any]]:
    """Sources for training and validation: sentences with a label each."""
    rows = [
        {"text": f"film {number} is " + "very " * (number % 7) + str(label), "label": label}
        for number in range(num_train + 6)
        for label in [labels[number % len(labels)]]
    ]
    return [
        write_jsonl(folder / "train.jsonl", rows[:num_train]),
        write_jsonl(folder / "validation.jsonl", rows[num_train:]),
    ]


def classification(store: Path, train: dict[str, Any], *validation: dict[str, Any], **options: Any) -> Config:
    return data_config(
        store,
        [train],
        validation,
        file_format="jsonl",
        tokenizer=options.pop("tokenizer", WORDPIECE),
        task="classification",
        family="bert",
        options=options,
    )


def translation(store: Path, train: dict[str, Any], *validation: dict[str, Any], family: str = "t5", **options: Any) -> Config:
    file_format = options.pop("file_format", "jsonl")
    return data_config(
        store,
        [train],
        validation,
        file_format=file_format,
        tokenizer=BPE,
        task="translation",
        family=family,
        options={"sequence_length": 24} | options,
    )


def pairs(folder: Path, num_pairs: int = 100) -> dict[str, Any]:
    rows = [
        {"source": "a dog " + "runs " * (number % 5) + str(number), "target": "ein Hund " + "läuft " * (number % 6)}
        for number in range(num_pairs)
    ]
    return write_jsonl(folder / "pairs.jsonl", rows)
