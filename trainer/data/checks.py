"""Reads inputs before anything is made of them: finds what is wrong with them, and the labels that they have."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

from trainer.config import Config
from trainer.data.parts import PartCheck, PartPlan, PartRecord, check_part
from trainer.data.readers import place_name
from trainer.data.store_plan import StorePlan, empty_source
from trainer.data.workers import run_all
from trainer.errors import DataError

logger = logging.getLogger(__name__)


def check_inputs(
    config: Config,
    plan: StorePlan,
    chosen: Sequence[PartPlan],
    records: Mapping[str, PartRecord],
    labels: tuple[str, ...] | None,
    pool: ProcessPoolExecutor | None,
) -> tuple[str, ...]:
    """Reads the inputs of those of the `chosen` parts that have no records; raises DataError for the first fault, or where
    there is no text at all.

    Returns the labels; where these are not known (None), those that all training parts have, which are read for it.
    """
    wanted = {part.file for part in chosen if part.file not in records}
    if labels is None:
        wanted |= {part.file for part in plan.train_parts}
    parts = [part for part in plan.parts if part.file in wanted]
    started = time.monotonic()
    found = {part.file: check for part, check in run_all(pool, check_part, parts)}
    checks = {part.file: found[part.file] for part in parts}
    _check_texts(config, plan, checks, records)
    if plan.reading.task == "classification":
        if labels is None:
            labels = _found_labels(config, plan, checks)
        _check_labels(config, plan, checks, labels)
    if parts:
        logger.info("read the inputs of %d parts in %.1f s: all sound", len(parts), time.monotonic() - started)
    if num_left_out := sum(check.num_left_out for check in checks.values()):
        logger.info("%s records without text are left out", f"{num_left_out:,}")
    _tell_back_translations(config, plan, checks)
    return labels or ()


def _check_texts(config: Config, plan: StorePlan, checks: Mapping[str, PartCheck], records: Mapping[str, PartRecord]) -> None:
    num_documents = {file: record.part.num_documents for file, record in records.items()}
    num_documents |= {file: check.num_documents for file, check in checks.items()}
    for split, datasets in plan.splits:
        for number, dataset in enumerate(datasets):
            # A shard that has read only some of a source cannot know.
            if all(num_documents.get(part.file) == 0 for part in dataset):
                raise empty_source(
                    split, number, (config.data.train if split == "train" else config.data.validation)[number].path
                )


def _found_labels(config: Config, plan: StorePlan, checks: Mapping[str, PartCheck]) -> tuple[str, ...]:
    """All labels of the training data, by number where all are whole numbers, otherwise by the alphabet."""
    labels = {label for part in plan.train_parts for label in checks[part.file].labels}
    if len(labels) < 2:
        raise DataError(
            f"data.train: all texts have the label {labels.pop()!r}; give texts of two or more, or check data.fields.label"
            if labels
            else "data.train: no text has a label; check data.fields.label"
        )
    if all(_is_whole_number(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _is_whole_number(label: str) -> bool:
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdigit()


def _check_labels(config: Config, plan: StorePlan, checks: Mapping[str, PartCheck], labels: Collection[str]) -> None:
    known = set(labels)
    for part in plan.parts:
        for label, (span, place) in checks[part.file].labels.items() if part.file in checks else ():
            if label not in known:
                given = "data.labels" if config.data.labels is not None else "those of the training data"
                named = ", ".join(list(labels)[:10]) + (", ..." if len(labels) > 10 else "")
                where = place_name(span, part.reading, place)
                raise DataError(
                    f"{where}: label {label!r} is not among {given}: {named}; mend that record, or give data.labels"
                )


def _tell_back_translations(config: Config, plan: StorePlan, checks: Mapping[str, PartCheck]) -> None:
    path = config.data.augmentation.back_translations
    if path is None or not all(part.file in checks for part in plan.train_parts):
        return
    in_training = [checks[part.file] for part in plan.train_parts]
    num_texts, num_found = (
        sum(getattr(check, name) for check in in_training) for name in ("num_documents", "num_back_translated")
    )
    if not num_found:
        raise DataError(
            f"data.augmentation.back_translations: {path} has none of the training texts; "
            "before the tab must be a text exactly as it is in data.train"
        )
    logger.info("%s: has back-translations of %s of %s training texts", path, f"{num_found:,}", f"{num_texts:,}")
