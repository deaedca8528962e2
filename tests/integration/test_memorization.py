"""What a model knows by heart is told apart from what can be guessed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training import checked, run_path, run_python, training_config, write_config
from trainer.errors import UserError

CANARY, UNKNOWN = "the code is 48151623", "the code is 90210777"


def sentence(draw: random.Random) -> str:
    return " ".join("".join(draw.choices("abcdefgh", k=4)) for _ in range(12))


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory, tensorflow: ModuleType) -> Path:
    """A run of a small model that has seen a few lines of no sense, one of them a canary, a few hundred times."""
    from trainer.data.prepare import prepare
    from trainer.loop import train

    folder, draw = tmp_path_factory.mktemp("memorization"), random.Random(3)
    (folder / "train.txt").write_text("".join(f"{sentence(draw)}\n" for _ in range(12)) + f"{CANARY}\n" * 3)
    (folder / "validation.txt").write_text("".join(f"{sentence(draw)}\n" for _ in range(12)))
    config = training_config(
        folder,
        "overfitted",
        data={"sequence_length": 64, "pack": False},
        model={"num_layers": 2, "num_heads": 2, "width": 64},
        optimizer={"learning_rate": 3e-3, "schedule": "linear", "weight_decay": 0.0, "beta2": 0.99},
        train={"steps": 500, "global_batch_size": 15, "steps_per_loop": 100},
        evaluation={"every": 500},
        checkpoint={"every": 500},
    )
    prepare(config, num_processes=1)
    train(config)
    write_config(config, folder / "config.yaml")
    return run_path(config)


def test_training_texts_are_extracted_and_others_are_not(overfitted: Path) -> None:
    from trainer.memorization import Extraction, measure

    found: dict[str, Any] = measure(overfitted, "latest", Extraction(100, 16, 32), [], 0)
    # The canaries are shorter than prompt and continuation.
    assert found["train"]["samples"] == 12
    assert found["train"]["share"] >= 0.9
    assert found["validation"] == {"samples": 12, "extracted": 0, "share": 0.0}


def test_greedy_generation_writes_what_counts_as_extracted(overfitted: Path) -> None:
    from trainer.config import GenerationConfig
    from trainer.memorization import Extraction, measure
    from trainer.prediction.inputs import Lines
    from trainer.prediction.predict import predict_run

    texts = (overfitted.parents[1] / "train.txt").read_text().splitlines()[:12]
    generation = GenerationConfig.model_validate({"temperature": 0.0, "max_tokens": 32})
    prompts = Lines([text[:16] for text in texts], "prompts", False)
    written = [prediction["text"] for prediction in predict_run(overfitted, prompts, generation, "latest")]
    num_written = sum(text[16:48] in each for text, each in zip(texts, written, strict=True))
    found: dict[str, Any] = measure(overfitted, "latest", Extraction(100, 16, 32), [], 0)
    assert found["train"]["extracted"] == num_written


def test_a_canary_is_exposed_and_one_that_was_not_planted_is_not(overfitted: Path, tmp_path: Path) -> None:
    (tmp_path / "canaries.txt").write_text(f"{CANARY}\n\n{UNKNOWN}\n")
    arguments = ["memorization", overfitted, "--prompt-tokens", "16", "--tokens", "16", "--alternatives", "255"]
    told = json.loads(
        checked(run_python("-m", "trainer", *arguments, "--canaries", tmp_path / "canaries.txt")).stdout.splitlines()[-1]
    )
    planted, other = told["canaries"]
    assert (planted["rank"], planted["of"], planted["exposure"]) == (1, 256, 8.0)
    assert other["exposure"] < 5.0


def test_what_cannot_be_measured_is_refused(overfitted: Path) -> None:
    from trainer.memorization import Extraction, measure

    with pytest.raises(UserError, match="got 80 together, expected at most the 64 of a row"):
        measure(overfitted, "latest", Extraction(1, 40, 40), [], 0)
    with pytest.raises(UserError, match="canary 1: got 'no digits', expected a text with digits"):
        measure(overfitted, "latest", Extraction(1, 16, 16), ["no digits"], 10)
