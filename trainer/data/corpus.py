"""What a run reads: the samples of its token store, in the run's order, checked against the configuration and the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import Config
from trainer.data.manifest import TOKENIZER_NAME, StoreManifest, read_manifest
from trainer.data.order import SampleOrder
from trainer.data.store import open_samples
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import Samples
from trainer.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """The training samples in their order, the validation samples, and the tokenizer that both were made with."""

    manifest: StoreManifest
    tokenizer: Path
    train: Sequence[Samples]
    validation: Sequence[Samples]
    order: SampleOrder


def open_corpus(config: Config, expected_fingerprint: str | None = None) -> Corpus:
    """Opens the store that `prepare` made; nothing of it is read yet.

    `expected_fingerprint` is that of the model's tokenizer, where there is a model already. Raises DataError where the
    store is missing, damaged, made with another tokenizer, or lacks the validation set that evaluation needs.
    """
    store = Path(config.data.store)
    manifest = read_manifest(store)
    fingerprint = expected_fingerprint or _configured_fingerprint(config, manifest)
    length, pack = config.data.sequence_length, config.data.pack
    train = open_samples(store, "train", sequence_length=length, pack=pack, fingerprint=fingerprint)
    validation: Sequence[Samples] = ()
    if config.data.validation:
        validation = open_samples(store, "validation", sequence_length=length, pack=pack, fingerprint=fingerprint)
    weights = [source.weight for source in config.data.train if source.weight is not None]
    order = SampleOrder([samples.num_samples for samples in train], weights or None, config.run.seed)
    return Corpus(manifest, store / TOKENIZER_NAME, train, validation, order)


def _configured_fingerprint(config: Config, manifest: StoreManifest) -> str:
    """The fingerprint that the configuration asks for: a given tokenizer's own; one that `prepare` trained is the store's,
    provided that it has the size asked for."""
    asked = config.data.tokenizer
    if asked.path is not None:
        return Tokenizer.load(Path(asked.path)).fingerprint
    if asked.vocabulary_size is not None and manifest.vocabulary_size > asked.vocabulary_size:
        raise DataError(
            f"{config.data.store}: its tokenizer has {manifest.vocabulary_size} tokens, but data.tokenizer.vocabulary_size is "
            f"{asked.vocabulary_size}; run: drumline prepare CONFIG"
        )
    return manifest.tokenizer_fingerprint
