"""Which prediction belongs to which task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config import Config, GenerationConfig
from trainer.errors import UserError
from trainer.prediction.answers import answer
from trainer.prediction.classes import classify
from trainer.prediction.hidden_tokens import fill_masks
from trainer.prediction.inputs import Lines, read_items
from trainer.prediction.model import load_model
from trainer.prediction.texts import write_texts

WRITING_TASKS = ("language_modeling", "translation", "summarization")


def predict_run(path: Path, given: Lines, generation: GenerationConfig, checkpoint: str) -> Iterator[dict[str, Any]]:
    """Yields the predictions of a run's model in the order of the input, as the tasks' modules describe them.

    A line is read once it is needed, so they may come from a pipe. Raises UserError where the run or the checkpoint is
    not there, a line lacks what the task needs, or an option is none of the task's.
    """
    model = load_model(path, checkpoint)
    _refuse_idle_options(model.config, generation)
    items = read_items(model.config, given)
    match model.config.task:
        case "language_modeling" | "translation" | "summarization":
            yield from write_texts(model, items, generation)
        case "classification":
            yield from classify(model, items, generation)
        case "masked_language_modeling":
            yield from fill_masks(model, items, generation)
        case "question_answering":
            yield from answer(model, items, generation)


def _refuse_idle_options(config: Config, generation: GenerationConfig) -> None:
    idle = sorted(generation.model_fields_set - {"batch_size"}) if config.task not in WRITING_TASKS else []
    if idle:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise UserError(f"{options}: got with {config.task}, which writes no text; leave out what is for generation")
