"""Every task learns: from files to metrics, by a model so small that it must know its few records by heart."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training import json_lines, run_path
from trainer.config import Config

WORDPIECE = {"kind": "wordpiece", "vocabulary_size": 340, "lowercase": True}
ENCODER = {"family": "bert", "num_layers": 1, "num_heads": 2, "width": 32}
DECODER = {"family": "gpt", "num_layers": 1, "num_heads": 2, "width": 32}
BOTH = {"family": "encoder_decoder", "num_layers": 1, "num_heads": 2, "width": 32, "positions": "sinusoidal"}

GOOD = (
    "a warm and funny film",
    "i loved every minute",
    "great acting throughout",
    "what a lovely surprise",
    "simply great fun",
)
BAD = ("a dull and boring film", "i hated every minute", "poor acting throughout", "what a dreary scene", "simply no fun")
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ZAHLEN = ["eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun", "zehn"]


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def task_config(
    directory: Path, task: str, model: dict[str, Any], steps: int, rate: float = 1e-2, batch: int = 8, **data: Any
) -> Config:
    """A run on `records.jsonl`, which are evaluated on too; `data` changes that section."""
    path = str(directory / "records.jsonl")
    values: dict[str, Any] = {
        "run": {"name": "run", "directory": str(directory / "runs"), "seed": 3},
        "task": task,
        "data": {
            "store": str(directory / "store"),
            "format": "jsonl",
            "train": [{"path": path}],
            "validation": [{"path": path}],
            "sequence_length": 32,
            "tokenizer": WORDPIECE,
            **data,
        },
        "model": model,
        "optimizer": {"learning_rate": rate, "warmup_steps": 5, "schedule": "linear", "weight_decay": 0.0},
        "train": {"steps": steps, "global_batch_size": batch, "steps_per_loop": steps, "compile": "graph"},
        "distribution": {"backend": "single"},
        "evaluation": {"every": steps, "batches": None},
        "checkpoint": {"every": steps},
        "logging": {"every": steps},
    }
    return Config.model_validate(values)


def trained(config: Config) -> dict[str, float]:
    """Prepares, trains, and returns the metrics of the evaluation at the end."""
    from trainer.data.prepare import prepare
    from trainer.loop import train

    prepare(config, num_processes=1)
    train(config)
    lines = [line for line in json_lines(run_path(config) / "metrics.jsonl") if line["split"] == "validation"]
    return lines[-1]


def pairs() -> list[dict[str, str]]:
    return [
        {"source": f"{NUMBERS[i]} and {NUMBERS[j]}", "target": f"{ZAHLEN[i]} und {ZAHLEN[j]}"}
        for i in range(10)
        for j in range(i % 2, 10, 3)
    ]


@pytest.mark.parametrize("model", [{"family": "bag_of_embeddings", "width": 16}, ENCODER, DECODER], ids=lambda m: m["family"])
@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
def test_sentiment_is_learned(tensorflow: ModuleType, tmp_path: Path, model: dict[str, Any], pack: bool) -> None:
    records = [{"text": text, "label": label} for texts, label in ((GOOD, "good"), (BAD, "bad")) for text in texts]
    write_records(tmp_path / "records.jsonl", records)
    rate = 5e-2 if model["family"] == "bag_of_embeddings" else 1e-2
    config = task_config(tmp_path, "classification", model, steps=40, rate=rate, batch=2 if pack else 10, pack=pack)
    metrics = trained(config)
    assert metrics["accuracy"] == 1.0
    assert metrics["macro_f1"] == 1.0
    assert metrics["auc"] == 1.0
    assert metrics["loss"] < 0.3


def test_pairs_of_texts_are_told_apart(tensorflow: ModuleType, tmp_path: Path) -> None:
    records = [
        {"first": NUMBERS[i], "second": ZAHLEN[j], "same": i == j} for i in range(5) for j in (i, (i + 1) % 5, (i + 2) % 5)
    ]
    for record in records:
        record["same"] = "yes" if record["same"] else "no"
    write_records(tmp_path / "records.jsonl", records)
    fields = {"text": "first", "text_b": "second", "label": "same"}
    config = task_config(tmp_path, "classification", ENCODER | {"num_layers": 2}, steps=120, batch=15, rate=5e-3, fields=fields)
    assert trained(config)["accuracy"] == 1.0


def test_several_labels_are_learned_with_mixup(tensorflow: ModuleType, tmp_path: Path) -> None:
    records = [
        {"text": f"{NUMBERS[i]} and {NUMBERS[j]}", "label": [NUMBERS[i], NUMBERS[j]]} for i in range(4) for j in range(i + 1, 4)
    ]
    write_records(tmp_path / "records.jsonl", records)
    model = {"family": "bag_of_embeddings", "width": 16}
    mixup = {"mixup": 0.2, "token_swap": 0.5}
    config = task_config(tmp_path, "classification", model, steps=80, batch=12, rate=5e-2, multi_label=True, augmentation=mixup)
    metrics = trained(config)
    assert metrics["accuracy"] == 1.0
    assert metrics["auc"] == 1.0


@pytest.mark.parametrize("pack", [True, "best_fit"], ids=["stream", "best_fit"])
def test_hidden_words_are_guessed(tensorflow: ModuleType, tmp_path: Path, pack: bool | str) -> None:
    texts = [*GOOD, *BAD] * 4
    write_records(tmp_path / "records.jsonl", [{"text": text} for text in texts])
    config = task_config(tmp_path, "masked_language_modeling", ENCODER, steps=150, pack=pack, masking={"whole_words": True})
    metrics = trained(config)
    assert metrics["accuracy"] > 0.5
    assert metrics["perplexity"] < 10


def test_packed_documents_are_learned(tensorflow: ModuleType, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", [{"text": text} for text in (*GOOD, *BAD)])
    metrics = trained(task_config(tmp_path, "language_modeling", DECODER, steps=100, batch=4, pack="best_fit"))
    assert metrics["perplexity"] < 3


@pytest.mark.parametrize("model", [BOTH, DECODER | {"num_layers": 2}], ids=lambda m: m["family"])
def test_translation_is_learned(tensorflow: ModuleType, tmp_path: Path, model: dict[str, Any]) -> None:
    write_records(tmp_path / "records.jsonl", pairs())
    metrics = trained(task_config(tmp_path, "translation", model, steps=120, sequence_length=64))
    assert metrics["accuracy"] > 0.9


def test_t5_summarizes_after_a_prompt(tensorflow: ModuleType, tmp_path: Path) -> None:
    records = [{"document": pair["source"], "summary": pair["target"]} for pair in pairs()]
    write_records(tmp_path / "records.jsonl", records)
    model = {"family": "t5", "num_layers": 1, "num_heads": 2, "width": 32}
    prompt = {"prompt": "summarize: {source}", "pack": False, "target_length": 16}
    metrics = trained(task_config(tmp_path, "summarization", model, steps=150, batch=16, **prompt))
    assert metrics["accuracy"] > 0.9


def test_answers_are_found_in_windows(tensorflow: ModuleType, tmp_path: Path) -> None:
    questions = []
    context = " . ".join(f"the {NUMBERS[i]} is called {ZAHLEN[i]}" for i in range(4))
    for i in range(4):
        answer = {"text": ZAHLEN[i], "answer_start": context.index(ZAHLEN[i])}
        questions.append({"id": f"q{i}", "question": f"what is {NUMBERS[i]}", "answers": [answer]})
    questions.append({"id": "none", "question": "who sings", "answers": [], "is_impossible": True})
    squad = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    sources = [{"path": str(tmp_path / "squad.json")}]
    data = {"format": "squad", "train": sources, "validation": sources, "sequence_length": 32, "window_overlap": 8}
    config = task_config(tmp_path, "question_answering", ENCODER | {"num_layers": 2}, steps=150, rate=5e-3, **data)
    metrics = trained(config)
    assert metrics["exact_match"] == 100.0
    assert metrics["f1"] == 100.0
