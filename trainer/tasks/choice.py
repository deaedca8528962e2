"""Which task a configuration names."""

from __future__ import annotations

from trainer.config import Config
from trainer.tasks.classification import Classification
from trainer.tasks.language_modeling import LanguageModeling
from trainer.tasks.masked_language_modeling import MaskedLanguageModeling
from trainer.tasks.question_answering import QuestionAnswering
from trainer.tasks.task import Task
from trainer.tasks.text_to_text import TextToText


def choose_task(config: Config) -> Task:
    match config.task:
        case "language_modeling":
            return LanguageModeling(config)
        case "masked_language_modeling":
            return MaskedLanguageModeling(config)
        case "classification":
            return Classification(config)
        case "translation" | "summarization":
            return TextToText(config)
        case "question_answering":
            return QuestionAnswering(config)
