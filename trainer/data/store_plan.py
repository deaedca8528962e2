"""What a token store will consist of: which part is made from which input, how it is read, and what that follows from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config import FIELDS, Config, DecontaminationConfig, SourceConfig
from trainer.data.back_translations import back_translations_file
from trainer.data.duplicates import Duplicates
from trainer.data.manifest import Split
from trainer.data.overlap import OverlapRule
from trainer.data.parts import PartPlan, timeless
from trainer.data.personal_data import PersonalDataRule
from trainer.data.readers import Reading, digest, unscreened
from trainer.data.sources import plan_units
from trainer.data.tables import FieldColumn
from trainer.errors import DataError
from trainer.files import json_bytes, write_atomically

# Says which classes the training data have, and of which inputs that is true.
LABELS_NAME = "labels.json"


@dataclass(frozen=True)
class StorePlan:
    """The parts of the store in order: by split, source, and unit."""

    train: tuple[tuple[PartPlan, ...], ...]
    validation: tuple[tuple[PartPlan, ...], ...]

    @property
    def train_parts(self) -> list[PartPlan]:
        return [part for dataset in self.train for part in dataset]

    @property
    def parts(self) -> list[PartPlan]:
        return self.train_parts + [part for dataset in self.validation for part in dataset]

    @property
    def splits(self) -> tuple[tuple[Split, tuple[tuple[PartPlan, ...], ...]], ...]:
        return ("train", self.train), ("validation", self.validation)

    @property
    def reading(self) -> Reading:
        return self.parts[0].reading

    def chosen(self, shard: tuple[int, int] | None) -> list[PartPlan]:
        """The parts of a shard (k, n): every n-th, from the k-th on (from 1). All, where there are no shards."""
        return self.parts if shard is None else self.parts[shard[0] - 1 :: shard[1]]

    def with_labels(self, labels: Sequence[str]) -> StorePlan:
        def labelled(datasets: tuple[tuple[PartPlan, ...], ...]) -> tuple[tuple[PartPlan, ...], ...]:
            return tuple(tuple(replace(part, labels=tuple(labels)) for part in dataset) for dataset in datasets)

        return StorePlan(labelled(self.train), labelled(self.validation))

    def with_training_reading(self, change: Callable[[PartPlan], Reading]) -> StorePlan:
        """The plan in which the training parts are read as `change` says of each."""
        train = tuple(tuple(replace(part, reading=change(part)) for part in dataset) for dataset in self.train)
        return replace(self, train=train)


def without_duplicates(plan: StorePlan, duplicates: Duplicates) -> StorePlan:
    """The plan in which these training texts are left out."""

    def own(part: PartPlan) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
        keys = [(part.file, span.path, span.begin) for span in part.unit.spans]
        return tuple((*key[1:], duplicates.numbers[key]) for key in keys if key in duplicates.numbers)

    return plan.with_training_reading(lambda part: replace(part.reading, duplicates=own(part)))


def _without_overlap(plan: StorePlan, chosen: DecontaminationConfig) -> StorePlan:
    """The plan in which training texts are left out that validation files, as they are now, have parts of."""
    spans = [span for dataset in plan.validation for part in dataset for span in part.unit.spans]
    sha256s = tuple(digest(file, plan.reading) for span in spans for file in span.files)
    rule = OverlapRule(chosen.words, chosen.least_words, tuple(map(timeless, spans)), sha256s)
    return plan.with_training_reading(lambda part: replace(part.reading, overlap=rule))


def duplicates_source(config: Config, plan: StorePlan) -> str:
    """A hash of all that the list of duplicates follows from; for the inputs, size and time stand for the contents."""
    assert config.data.duplicates is not None
    return _hash([config.data.duplicates.model_dump(mode="json"), _set_keys(asdict(unscreened(plan.reading))), _spans(plan)])


def plan_store(config: Config) -> StorePlan:
    """Divides all sources; raises DataError for files that are missing or empty. Nobody knows labels yet."""
    data = config.data
    reading = _reading(config)
    path = data.augmentation.back_translations
    back_translations = back_translations_file(path) if path is not None else None

    def plan_split(split: Split, sources: Sequence[SourceConfig]) -> Iterator[tuple[PartPlan, ...]]:
        for number, source in enumerate(sources):
            units = plan_units(source, data.format, f"data.{split}[{number}]")
            if not units:
                raise empty_source(split, number, source.path)
            yield tuple(
                PartPlan(
                    file=f"{split}/{number}/part-{index:05d}.arrow",
                    unit=unit,
                    reading=reading,
                    back_translations=back_translations if split == "train" else None,
                    is_encrypted=config.security.encrypt,
                )
                for index, unit in enumerate(units)
            )

    plan = StorePlan(tuple(plan_split("train", data.train)), tuple(plan_split("validation", data.validation)))
    return plan if data.decontamination is None else _without_overlap(plan, data.decontamination)


def empty_source(split: Split, number: int, path: str) -> DataError:
    return DataError(f"data.{split}[{number}].path: {path} holds no text; check the path, data.format, and data.fields")


def _reading(config: Config) -> Reading:
    columns = tuple(
        FieldColumn(field, column)
        for field in FIELDS[config.task]
        if (column := getattr(config.data.fields, field)) is not None
    )
    task = "language_modeling" if config.task == "masked_language_modeling" else config.task
    personal_data = config.data.personal_data
    rule = None
    if personal_data is not None:
        rule = PersonalDataRule(personal_data.action, personal_data.kinds, personal_data.language_model)
    return Reading(task, config.data.format, columns, config.data.multi_label, rule)


def tokenizer_source(config: Config, plan: StorePlan, num_characters: int) -> str:
    """A hash of all that a tokenizer follows from which is trained on at most `num_characters`; for the inputs, size and
    time stand for the contents."""
    settings = {name: value for name, value in config.data.tokenizer.model_dump().items() if name != "lowercase" or value}
    reading = plan.reading
    fields: Any = reading.columns[0].column if reading.is_of_documents else [reading.task, reading.columns]
    content = [settings, reading.format, fields, _spans(plan), num_characters]
    rules: list[Any] = [_set_keys(asdict(rule)) for rule in (reading.personal_data, reading.overlap) if rule is not None]
    return _hash([*content, *rules, *_all_duplicates(plan)])


def known_labels(store: Path, config: Config, plan: StorePlan) -> tuple[str, ...] | None:
    """The classes in the order of their numbers: those of the configuration, or those that were found before in the
    training data as they are now. None where they must be read for it."""
    if config.task != "classification":
        return ()
    if config.data.labels is not None:
        return config.data.labels
    try:
        content = json.loads((store / LABELS_NAME).read_bytes())
        return tuple(content["labels"]) if content["sha256"] == _labels_source(plan) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_labels(store: Path, plan: StorePlan, labels: Sequence[str]) -> None:
    write_atomically(store / LABELS_NAME, json_bytes({"sha256": _labels_source(plan), "labels": list(labels)}))


def _labels_source(plan: StorePlan) -> str:
    reading = _set_keys(asdict(replace(plan.reading, duplicates=())))
    if plan.reading.personal_data is not None:
        reading["personal_data"] = _set_keys(reading["personal_data"])
    return _hash([reading, _spans(plan), *_all_duplicates(plan)])


def _all_duplicates(plan: StorePlan) -> list[Any]:
    return [each for part in plan.train_parts for each in part.reading.duplicates]


def _spans(plan: StorePlan) -> list[dict[str, Any]]:
    return [_set_keys(asdict(span)) for part in plan.train_parts for span in part.unit.spans]


def _set_keys(content: dict[str, Any]) -> dict[str, Any]:
    """Without what is None or empty, as before there was such a key: what was made then need not be made again."""
    return {name: value for name, value in content.items() if value is not None and value != ()}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
