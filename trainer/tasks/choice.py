"""Which task a configuration names."""

from __future__ import annotations

from trainer.config import Config
from trainer.tasks.language_modeling import LanguageModeling
from trainer.tasks.task import Task


def choose_task(config: Config) -> Task:
    match config.task:
        case "language_modeling":
            return LanguageModeling(config)
        case _:
            raise NotImplementedError(config.task)
