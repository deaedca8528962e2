"""What a run reads: the samples of its token store, in the run's order, checked against the configuration and the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import Config
from trainer.data.folds import trained_and_held_out
from trainer.data.manifest import TOKENIZER_NAME, StoreManifest, read_manifest_of
from trainer.data.order import SampleOrder
from trainer.data.store import open_samples
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import Int64Array, Samples


@dataclass(frozen=True)
class ValidationSet:
    """Samples, none where there is nothing to evaluate, and the numbers of those that are meant by data set (None: all)."""

    samples: Sequence[Samples] = ()
    chosen: Sequence[Int64Array] | None = None


@dataclass(frozen=True)
class Corpus:
    """The training samples in their order, what is evaluated, and the tokenizer that both were made with.

    `fingerprint` is that of the training text; `order_fingerprint`, of all that makes sample ids mean what they mean.
    """

    manifest: StoreManifest
    tokenizer: Path
    train: Sequence[Samples]
    validation: ValidationSet
    order: SampleOrder
    fingerprint: str
    order_fingerprint: str


def open_corpus(config: Config, expected_fingerprint: str | None = None) -> Corpus:
    """Opens the store that `prepare` made; nothing of it is read yet.

    `expected_fingerprint` is that of the model's tokenizer, where there is a model already. Raises DataError where the
    store is missing, damaged, made with another tokenizer, or lacks the validation set that evaluation needs.
    """
    store = Path(config.data.store)
    manifest = read_manifest_of(config)
    fingerprint = expected_fingerprint
    if fingerprint is None and config.data.tokenizer.path is not None:
        fingerprint = Tokenizer.load(Path(config.data.tokenizer.path)).fingerprint
    train = open_samples(config, "train", fingerprint=fingerprint)
    trained, validation = None, ValidationSet()
    if config.data.folds is not None:
        trained, held_out = trained_and_held_out(train, config.data.folds)
        validation = ValidationSet(open_samples(config, "train", fingerprint=fingerprint, is_evaluated=True), held_out)
    elif config.data.validation:
        validation = ValidationSet(open_samples(config, "validation", fingerprint=fingerprint))
    weights = [source.weight for source in config.data.train if source.weight is not None]
    order = SampleOrder([samples.num_samples for samples in train], weights or None, config.run.seed, trained)
    fingerprint = _sha256("".join(part.sha256 for dataset in manifest.train for part in dataset.parts))
    # `true` for a stream, as before there were other ways to pack: so the ledgers of earlier runs still compare.
    pack = {"stream": True, "none": False}.get(config.packing, config.packing)
    length = config.data.sequence_length
    meaning = [fingerprint, manifest.tokenizer_fingerprint, weights, length, pack]
    if config.packing == "best_fit":
        meaning += [dataset.rows.sha256 for dataset in manifest.train if dataset.rows is not None]
    if config.task == "question_answering":
        meaning.append(config.data.window_overlap)  # how many windows a context has
    if config.data.folds is not None:
        meaning.append(config.data.folds.model_dump())
    order_fingerprint = _sha256(json.dumps(meaning))
    return Corpus(manifest, store / TOKENIZER_NAME, train, validation, order, fingerprint, order_fingerprint)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
