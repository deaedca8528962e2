"""The manifest of a token store: what is in it and where it came from. Plain JSON, no TensorFlow, no Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from trainer.config import ENCODER_DECODERS, FIELDS, Config, DataConfig
from trainer.errors import DataError
from trainer.files import is_inside, json_bytes, write_atomically
from trainer.sizes import Sizes

STORE_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class InputRange:
    """A part of an input file, and the sha256 of the bytes it was read from: bytes `begin` to `end`, in Parquet rows.

    `size` is that of the whole file. Where the range is the whole file the hash is what `sha256sum` prints for it
    (of a Parquet file only the chunks of the column that holds the text are hashed).
    """

    path: str
    size: int
    begin: int
    end: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """One Arrow file of the store; `file` is relative to the store. `num_documents` counts records where the task has
    these, `num_tokens` the tokens of all their texts."""

    file: str
    num_documents: int
    num_tokens: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class RowsFile:
    """The Arrow file that says which pieces (records, or documents cut to fit) lie in which row; `file` is relative to the
    store. `num_real_tokens` of the `num_places` that all rows together have are not padding. `origin` is a hash of what the
    rows follow from."""

    file: str
    num_rows: int
    num_pieces: int
    num_real_tokens: int
    num_places: int
    num_bytes: int
    sha256: str
    origin: str

    @property
    def share(self) -> float:
        """That of the places that hold real tokens."""
        return self.num_real_tokens / max(1, self.num_places)


@dataclass(frozen=True)
class Dataset:
    """What one source of the configuration became: its parts in order, the inputs they were made from, and, where samples
    are packed by best fit, the rows."""

    path: str
    weight: float | None
    parts: tuple[Part, ...]
    inputs: tuple[InputRange, ...]
    rows: RowsFile | None = None

    @property
    def num_documents(self) -> int:
        return sum(part.num_documents for part in self.parts)

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)


@dataclass(frozen=True)
class StoreManifest:
    """A whole token store. `token_dtype` is "uint16" where the vocabulary fits, otherwise "uint32"; `settings` is what of
    the configuration the store follows from; `labels` are the classes in the order of their numbers."""

    version: int
    settings: dict[str, Any]
    tokenizer_fingerprint: str
    vocabulary_size: int
    end_of_text: int
    token_dtype: str
    train: tuple[Dataset, ...]
    validation: tuple[Dataset, ...]
    labels: tuple[str, ...] = ()

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.vocabulary_size, len(self.labels))

    def datasets(self, split: Split) -> tuple[Dataset, ...]:
        return self.train if split == "train" else self.validation

    def num_documents(self, split: Split) -> int:
        return sum(dataset.num_documents for dataset in self.datasets(split))

    def num_tokens(self, split: Split) -> int:
        return sum(dataset.num_tokens for dataset in self.datasets(split))

    def num_samples(self, split: Split, sequence_length: int) -> int:
        """The samples of a split when its documents are packed."""
        return sum(num_samples(dataset.num_tokens, sequence_length) for dataset in self.datasets(split))


def store_settings(config: Config) -> dict[str, Any]:
    """What of the configuration decides what is in the store: with another of these it must be prepared again.

    Language models, masked or not, share their stores; those of other tasks also follow from what is theirs.
    """
    data, task = config.data, config.task
    settings = _data_settings(data, FIELDS[task])
    if task not in ("language_modeling", "masked_language_modeling"):
        settings["task"] = task
    if task == "classification":
        settings |= {"labels": data.labels and list(data.labels), "multi_label": data.multi_label}
    if data.augmentation.back_translations is not None:
        settings["augmentation.back_translations"] = data.augmentation.back_translations
    if data.personal_data is not None:
        settings["personal_data"] = data.personal_data.model_dump(mode="json", exclude_none=True)
    if data.decontamination is not None:
        settings["decontamination"] = data.decontamination.model_dump(mode="json")
    if data.duplicates is not None:
        settings["duplicates"] = data.duplicates.model_dump(mode="json")
    if config.security.encrypt:
        settings["encrypted"] = True
    if config.packing == "best_fit":
        settings["pack"] = {
            "best_fit": True,
            "sequence_length": data.sequence_length,
            "target_length": config.target_length if config.model.family in ENCODER_DECODERS else None,
            "prompt": data.prompt,
            "family": config.model.family,
        }
    return settings


def _data_settings(data: DataConfig, fields: Iterable[str]) -> dict[str, Any]:
    sources = {
        split: [_without_defaults(source.model_dump(exclude={"weight"}), "target_path") for source in sources]
        for split, sources in (("train", data.train), ("validation", data.validation))
    }
    columns = {name: column for name in fields if (column := getattr(data.fields, name)) is not None}
    tokenizer = _without_defaults(data.tokenizer.model_dump(), "lowercase")
    return {"format": data.format, "fields": columns, "tokenizer": tokenizer, **sources}


def _without_defaults(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Leaves out a setting that has not been set, so that stores made before there was such a one stay what they are."""
    return {name: value for name, value in settings.items() if name != key or value}


def num_samples(num_tokens: int, sequence_length: int) -> int:
    """How many packed sequences a stream of tokens holds: the last target needs one token more than the inputs."""
    return max(0, num_tokens - 1) // sequence_length


def read_manifest(store: Path) -> StoreManifest:
    """Reads `manifest.json`; raises DataError where it is missing, damaged, or of another version."""
    path = store / MANIFEST_NAME
    try:
        written = path.read_bytes()
        content = json.loads(written)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; the token store is not there or not whole: run: drumline prepare CONFIG"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run: drumline prepare CONFIG") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != STORE_VERSION:
        raise DataError(
            f"{path}: got store version {version!r}, expected {STORE_VERSION}; "
            "delete the store and run: drumline prepare CONFIG"
        )
    try:
        manifest = TypeAdapter(StoreManifest).validate_json(written, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(f"{path}: is damaged ({what}); delete it and run: drumline prepare CONFIG") from None
    for file in _files(manifest):
        if not is_inside(file):
            raise DataError(f"{path}: names the file {file!r}, which is not in the store; do not use this store")
    return manifest


def _files(manifest: StoreManifest) -> Iterator[str]:
    for dataset in manifest.train + manifest.validation:
        yield from (part.file for part in dataset.parts)
        if dataset.rows is not None:
            yield dataset.rows.file


def read_manifest_of(config: Config) -> StoreManifest:
    """The manifest of `data.store`; raises DataError also where other settings made it: to train on it all the same would
    silently be another training."""
    manifest = read_manifest(Path(config.data.store))
    _compare(config.data.store, manifest.settings, store_settings(config))
    return manifest


def _compare(store: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            name = {"task": "task", "encrypted": "security.encrypt"}.get(key, f"data.{key}")
            raise DataError(
                f"{store}: was prepared with {name} {json.dumps(before.get(key))}, and it is now {json.dumps(now.get(key))}; "
                "run: drumline prepare CONFIG"
            )


def write_manifest(manifest: StoreManifest, store: Path) -> None:
    """Writes `manifest.json`, which makes the store whole."""
    write_atomically(store / MANIFEST_NAME, json_bytes(asdict(manifest)))
