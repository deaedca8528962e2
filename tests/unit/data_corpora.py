"""Text and configurations for the tests of `trainer.data`."""

from __future__ import annotations

import pydoc_data.topics
import random
from pathlib import Path
from typing import Any

from trainer.config import Config

TEXT = "\n\n".join(pydoc_data.topics.topics.values())
CHARACTER: dict[str, Any] = {"kind": "character"}
BPE: dict[str, Any] = {"kind": "bpe", "vocabulary_size": 500}


def data_config(
    store: Path,
    train: list[dict[str, Any]],
    validation: tuple[dict[str, Any], ...] = (),
    *,
    file_format: str = "text",
    field: str | int = "text",
    tokenizer: dict[str, Any] = CHARACTER,
) -> Config:
    """A whole configuration, of which only the data matter here."""
    data = {
        "store": str(store),
        "train": train,
        "validation": list(validation),
        "format": file_format,
        "fields": {"text": field},
        "sequence_length": 16,
        "tokenizer": tokenizer,
    }
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "data": data,
            "model": {"num_layers": 1, "num_heads": 1, "width": 8},
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
