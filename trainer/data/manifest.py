"""The manifest of a token store: what is in it and where it came from. Plain JSON, no TensorFlow, no Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import DataConfig
from trainer.errors import DataError
from trainer.files import json_bytes, write_atomically

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
    """One Arrow file of the store; `file` is relative to the store."""

    file: str
    num_documents: int
    num_tokens: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """What one source of the configuration became: its parts in order, and the inputs they were made from."""

    path: str
    weight: float | None
    parts: tuple[Part, ...]
    inputs: tuple[InputRange, ...]

    @property
    def num_documents(self) -> int:
        return sum(part.num_documents for part in self.parts)

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)


@dataclass(frozen=True)
class StoreManifest:
    """A whole token store. `token_dtype` is "uint16" where the vocabulary fits, otherwise "uint32"; `settings` is what of
    the configuration the store follows from."""

    version: int
    settings: dict[str, Any]
    tokenizer_fingerprint: str
    vocabulary_size: int
    end_of_text: int
    token_dtype: str
    train: tuple[Dataset, ...]
    validation: tuple[Dataset, ...]

    def datasets(self, split: Split) -> tuple[Dataset, ...]:
        return self.train if split == "train" else self.validation

    def num_documents(self, split: Split) -> int:
        return sum(dataset.num_documents for dataset in self.datasets(split))

    def num_tokens(self, split: Split) -> int:
        return sum(dataset.num_tokens for dataset in self.datasets(split))

    def num_samples(self, split: Split, sequence_length: int) -> int:
        """The samples of a split when its documents are packed."""
        return sum(num_samples(dataset.num_tokens, sequence_length) for dataset in self.datasets(split))


def store_settings(data: DataConfig) -> dict[str, Any]:
    """What of `data` decides what is in the store: with another of these it must be prepared again."""
    spans = {
        split: [source.model_dump(exclude={"weight"}) for source in sources]
        for split, sources in (("train", data.train), ("validation", data.validation))
    }
    return {"format": data.format, "fields": data.fields.model_dump(), "tokenizer": data.tokenizer.model_dump(), **spans}


def num_samples(num_tokens: int, sequence_length: int) -> int:
    """How many packed sequences a stream of tokens holds: the last target needs one token more than the inputs."""
    return max(0, num_tokens - 1) // sequence_length


def read_manifest(store: Path) -> StoreManifest:
    """Reads `manifest.json`; raises DataError where it is missing, damaged, or of another version."""
    path = store / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; the token store is not there or not whole: run: drumline prepare CONFIG"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run: drumline prepare CONFIG") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != STORE_VERSION:
        raise DataError(
            f"{path}: got store version {version!r}, expected {STORE_VERSION}; "
            "delete the store and run: drumline prepare CONFIG"
        )
    try:
        return StoreManifest(
            **{
                **content,
                "train": tuple(_dataset(entry) for entry in content["train"]),
                "validation": tuple(_dataset(entry) for entry in content["validation"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}); delete it and run: drumline prepare CONFIG") from None


def read_matching_manifest(data: DataConfig) -> StoreManifest:
    """The manifest of `data.store`; raises DataError also where other settings made it: to train on it all the same would
    silently be another training."""
    manifest = read_manifest(Path(data.store))
    for key, now in store_settings(data).items():
        before = manifest.settings.get(key)
        if before != now:
            raise DataError(
                f"{data.store}: was prepared with data.{key} {json.dumps(before)}, and it is now {json.dumps(now)}; "
                "run: drumline prepare CONFIG"
            )
    return manifest


def write_manifest(manifest: StoreManifest, store: Path) -> None:
    """Writes `manifest.json`, which makes the store whole."""
    write_atomically(store / MANIFEST_NAME, json_bytes(asdict(manifest)))


def _dataset(entry: dict[str, Any]) -> Dataset:
    return Dataset(
        path=entry["path"],
        weight=entry["weight"],
        parts=_records(Part, entry["parts"]),
        inputs=_records(InputRange, entry["inputs"]),
    )


def _records(kind: type[Any], entries: Iterable[dict[str, Any]]) -> tuple[Any, ...]:
    return tuple(kind(**entry) for entry in entries)
