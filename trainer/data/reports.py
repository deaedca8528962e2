"""Writes and tells what `prepare` masked in texts, and which it left out."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from trainer.data.overlap import OverlapReport
from trainer.data.parts import PartRecord
from trainer.data.personal_data import PersonalDataReport
from trainer.data.store_plan import StorePlan
from trainer.files import json_bytes, write_atomically

logger = logging.getLogger(__name__)

# How many personal data were found, and how some looked once they were masked.
PERSONAL_DATA_NAME = "personal-data.json"

# How many training texts were left out, since evaluations have them, and by which words some were found.
OVERLAP_NAME = "decontamination.json"


def report_personal_data(store: Path, plan: StorePlan, records: dict[str, PartRecord]) -> None:
    """Writes and tells how much was found, and what became of it."""
    rule, content = plan.reading.personal_data, {}
    assert rule is not None
    done = "masked" if rule.action == "mask" else "found and their texts dropped"
    for split, datasets in plan.splits:
        report = PersonalDataReport()
        for part in (each for dataset in datasets for each in dataset):
            report.merge(records[part.file].personal_data)
        content[split] = asdict(report)
        items = ", ".join(f"{number:,} {kind}" for kind, number in sorted(report.num_items.items())) or "none"
        logger.info(
            "%s: %s: personal data %s in %s texts: %s", store / PERSONAL_DATA_NAME, split, done, f"{report.num_texts:,}", items
        )
    write_atomically(store / PERSONAL_DATA_NAME, json_bytes({"rule": asdict(rule), **content}))


def report_overlap(store: Path, plan: StorePlan, records: dict[str, PartRecord]) -> None:
    """Writes and tells how many training texts were left out, since evaluations have them."""
    rule, report = plan.reading.overlap, OverlapReport()
    assert rule is not None
    for part in plan.train_parts:
        report.merge(records[part.file].overlap)
    logger.info(
        "%s: %s training texts left out: they share %d words with the validation data",
        *(store / OVERLAP_NAME, f"{report.num_texts:,}", rule.num_words),
    )
    shown = {"num_words": rule.num_words, "least_words": rule.least_words, **asdict(report)}
    write_atomically(store / OVERLAP_NAME, json_bytes(shown))
