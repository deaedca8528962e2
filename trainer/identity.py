"""What makes a run the run it is: the settings that decide what its numbers mean, compared before it goes on."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from trainer.config import (
    AugmentationConfig,
    Config,
    DataConfig,
    MaskingConfig,
    ModelConfig,
    OptimizerConfig,
    Section,
    TrainConfig,
)
from trainer.data.samples.question_answering import QuestionSamples
from trainer.errors import CheckpointError

if TYPE_CHECKING:  # it imports TensorFlow
    from trainer.data.corpus import Corpus

Identity = Mapping[str, Any]

_NOT_OF_THE_MODEL = ("model.initialize_from", "model.recompute")
_PRIVACY_KEYS = ("clip_norm", "noise_multiplier")  # the budget may change: what was spent is known
_DATA_KEYS = ("target_length", "multi_label", "prompt", "window_overlap")


def identity(config: Config, corpus: Corpus) -> dict[str, Any]:
    """By the keys of the configuration. Tokenizer and training text are there by their fingerprints: it is their contents
    that count, not where they lie. Of the contents themselves there is what predictions need: the classes' names, and
    whether there are questions without an answer."""
    return {
        "run.seed": config.run.seed,
        "task": config.task,
        "data.tokenizer": corpus.manifest.tokenizer_fingerprint,
        "data.train": corpus.fingerprint,
        "data.train.weight": [source.weight for source in config.data.train],
        "data.sequence_length": config.data.sequence_length,
        # What it means, whether it was given or not; `true` for a stream, as before there were other ways to pack.
        "data.pack": {"stream": True, "none": False}.get(config.packing, config.packing),
        "data.labels": list(corpus.manifest.labels),
        "data.has_unanswerable": any(_has_unanswerable(each) for each in corpus.train if isinstance(each, QuestionSamples)),
        **{f"data.{key}": getattr(config.data, key) for key in _DATA_KEYS},
        "data.folds": config.data.folds and config.data.folds.model_dump(mode="json"),
        **_section("data.masking", config.data.masking),
        **_section("data.augmentation", config.data.augmentation),
        **_model(config.model),
        **_section("optimizer", config.optimizer),
        "train.global_batch_size": config.train.global_batch_size,
        "train.precision": config.train.precision,
        "train.label_smoothing": config.train.label_smoothing,
        "train.average_decay": config.train.average_decay,
        **{f"privacy.{key}": config.privacy and getattr(config.privacy, key) for key in _PRIVACY_KEYS},
    }


def _model(model: ModelConfig) -> dict[str, Any]:
    """Without the folder that it begins from: of a run that goes on, the weights are in its checkpoint, wherever that lies. And
    without what changes no number."""
    return {key: value for key, value in _section("model", model).items() if key not in _NOT_OF_THE_MODEL}


@functools.lru_cache(maxsize=64)
def _has_unanswerable(samples: QuestionSamples) -> bool:
    """Reads all answers of a data set, up to the first question that has none."""
    return not all(samples.answers(record) for record in range(len(samples.num_windows)))


def refuse_changes(saved: Identity, now: Identity, allowed: Sequence[str], origin: str) -> list[str]:
    """Compares a checkpoint's identity with the run's; returns what differs and is allowed to, each as a line.

    `allowed` has keys, or sections, which stand for all of their keys. Raises CheckpointError where anything else
    differs. A key that was unknown when the checkpoint was written had the value that is now its default.
    """
    for key in allowed:
        if not any(_covers(key, each) for each in now):
            raise CheckpointError(f"--allow-change {key}: no such key; expected one of {', '.join(now)}, or a section of these")
    differences = {}
    for key in {**saved, **now}:
        before, after = saved.get(key, _DEFAULTS.get(key)), now.get(key)
        if before != after:
            differences[key] = f"{key} was {_brief(before)} and is now {_brief(after)}"
    refused = [key for key in differences if not any(_covers(each, key) for each in allowed)]
    if refused:
        options = " ".join(f"--allow-change {key}" for key in refused)
        raise CheckpointError(
            f"{origin} is of another run: {'; '.join(differences[key] for key in refused)}; "
            f"take another run.name, change it back, or go on all the same with {options}"
        )
    return list(differences.values())


def _covers(allowed: str, key: str) -> bool:
    return key == allowed or key.startswith(f"{allowed}.")


def _section(name: str, section: Section) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in section.model_dump(mode="json").items()}


def _defaults(name: str, fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """As a checkpoint's JSON has them: it knows no tuples."""
    return {f"{name}.{key}": to_jsonable_python(field.default) for key, field in fields.items() if not field.is_required()}


_DEFAULTS = {
    "task": "language_modeling",
    "data.labels": [],
    "data.has_unanswerable": False,
    "data.folds": None,
    **_defaults("data", {key: DataConfig.model_fields[key] for key in _DATA_KEYS}),
    **_defaults("data.masking", MaskingConfig.model_fields),
    **_defaults("data.augmentation", AugmentationConfig.model_fields),
    **_defaults("model", ModelConfig.model_fields),
    **_defaults("optimizer", OptimizerConfig.model_fields),
    **_defaults("train", {key: TrainConfig.model_fields[key] for key in ("label_smoothing", "average_decay")}),
}


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
