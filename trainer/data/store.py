"""Opens a token store and holds its files against the manifest. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.config import ENCODER_DECODERS, Config
from trainer.data.arrow_files import Batch, read_batches
from trainer.data.augmentation import TextAugmentation
from trainer.data.manifest import TOKENIZER_NAME, Part, RowsFile, Split, StoreManifest, read_manifest
from trainer.data.records import PackedRows, RecordTable
from trainer.data.samples.classification import ClassificationSamples
from trainer.data.samples.documents import MaskedSamples, PackedDocuments
from trainer.data.samples.question_answering import QuestionSamples
from trainer.data.samples.records import Records
from trainer.data.samples.text_to_text import DecoderSamples, EncoderDecoderSamples
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import DocumentWindows, PackedWindows, Samples, TokenStream
from trainer.encryption.files import PLAIN, Encryption
from trainer.errors import DataError

AGAIN = "delete it and run: drumline prepare CONFIG"


class TokenStore:
    """One split of a token store; nothing is read before it is asked for.

    What there is of each data set depends on the task: of language models `streams`, of all others `tables`, and where
    samples are packed by best fit `rows`.

    Raises DataError where a file is missing or is not what the manifest says. Sizes and counts are always compared;
    `verify` also reads every byte and compares the hashes.
    """

    def __init__(self, store: Path, split: Split, encryption: Encryption = PLAIN, *, verify: bool = False) -> None:
        self.manifest: StoreManifest = read_manifest(store)
        self.split, self._store, self._encryption, self._verify = split, store, encryption, verify
        self._datasets = self.manifest.datasets(split)
        if not self._datasets:
            raise DataError(f"{store}: has no {split} data; give data.{split} and run: drumline prepare CONFIG")
        self._names = [f"{store}: {split} data of {dataset.path}" for dataset in self._datasets]
        dtype = self.manifest.token_dtype
        self._batches = [open_parts(store, each.parts, dtype, encryption, verify=verify) for each in self._datasets]

    @cached_property
    def streams(self) -> tuple[TokenStream, ...]:
        end_of_text = self.manifest.end_of_text
        return tuple(token_stream(name, batches, end_of_text) for name, batches in zip(self._names, self._batches, strict=True))

    @cached_property
    def tables(self) -> tuple[RecordTable, ...]:
        return tuple(RecordTable(name, batches) for name, batches in zip(self._names, self._batches, strict=True))

    @cached_property
    def rows(self) -> tuple[PackedRows, ...]:
        for dataset in self._datasets:
            if dataset.rows is None:
                raise DataError(f"{self._store}: was prepared without rows to pack into; run: drumline prepare CONFIG")
        opened = (_open_rows(self._store, each.rows, self._encryption, self._verify) for each in self._datasets if each.rows)
        return tuple(opened)


def open_samples(config: Config, split: Split, *, fingerprint: str | None = None, is_evaluated: bool = False) -> list[Samples]:
    """The samples of a split, one entry for each of its data sets. Those that are evaluated, as the validation's always are,
    come as they are, without augmentation.

    Raises DataError where the store is damaged, too small for one sequence, or made with another tokenizer than the one
    of `fingerprint` (None: any will do).
    """
    store = Path(config.data.store)
    token_store = TokenStore(store, split, Encryption.of(config.security))
    is_evaluated = is_evaluated or split == "validation"
    made_with = token_store.manifest.tokenizer_fingerprint
    if fingerprint is not None and made_with != fingerprint:
        raise DataError(
            f"{store}: was made with tokenizer {made_with[:12]}, the model's is {fingerprint[:12]}; "
            "prepare the data with the model's tokenizer (data.tokenizer: {kind: pretrained, path: ...})"
        )
    match config.task:
        case "language_modeling":
            return _language_samples(config, token_store)
        case "masked_language_modeling":
            tokenizer, rows = store_tokenizer(config), _rows(config, token_store)
            return [
                MaskedSamples(config, stream, packed, tokenizer)
                for stream, packed in zip(token_store.streams, rows, strict=True)
            ]
        case "classification":
            return _classification_samples(config, token_store, is_evaluated)
        case "translation" | "summarization":
            tokenizer, rows = store_tokenizer(config), _rows(config, token_store)
            augmentation = _augmentation(config, is_evaluated, tokenizer)
            samples = EncoderDecoderSamples if config.model.family in ENCODER_DECODERS else DecoderSamples
            return [
                samples(Records(config, table, packed, tokenizer, augmentation))
                for table, packed in zip(token_store.tables, rows, strict=True)
            ]
        case "question_answering":
            tokenizer = store_tokenizer(config)
            return [QuestionSamples(config, table, tokenizer) for table in token_store.tables]


def _language_samples(config: Config, store: TokenStore) -> list[Samples]:
    length = config.data.sequence_length
    match config.packing:
        case "stream":
            return [PackedWindows(stream, length) for stream in store.streams]
        case "none":
            return [DocumentWindows(stream, length) for stream in store.streams]
        case "best_fit":
            return [PackedDocuments(*each, length) for each in zip(store.streams, store.rows, strict=True)]


def _classification_samples(config: Config, store: TokenStore, is_evaluated: bool) -> list[Samples]:
    tokenizer, rows = store_tokenizer(config), _rows(config, store)
    # One shape for all data sets, since a batch may have samples of several.
    num_places = max(1 if packed is None else packed.max_pieces for packed in rows)
    num_labels, augmentation = len(store.manifest.labels), _augmentation(config, is_evaluated, tokenizer)
    return [
        ClassificationSamples(Records(config, table, packed, tokenizer, augmentation), num_labels, num_places)
        for table, packed in zip(store.tables, rows, strict=True)
    ]


def _rows(config: Config, store: TokenStore) -> Sequence[PackedRows | None]:
    return store.rows if config.packing == "best_fit" else [None] * len(store.manifest.datasets(store.split))


def store_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that the store was made with."""
    return Tokenizer.load(Path(config.data.store) / TOKENIZER_NAME, Encryption.of(config.security))


def _augmentation(config: Config, is_evaluated: bool, tokenizer: Tokenizer) -> TextAugmentation | None:
    """What changes texts: none but those of training are."""
    if is_evaluated or config.data.augmentation.is_off:
        return None
    return TextAugmentation(config, tokenizer)


def token_stream(name: str, batches: Sequence[Batch], end_of_text: int) -> TokenStream:
    """The column `tokens` of record batches, as one stream; `name` is for complaints."""
    columns = [batch.columns["tokens"] for batch in batches]
    segments, row_offsets = [column.values for column in columns], [column.offsets for column in columns]
    starts = np.concatenate([[0], np.cumsum([len(segment) for segment in segments], dtype=np.int64)])
    return TokenStream(name, end_of_text, segments, row_offsets, starts.astype(np.int64))


def open_parts(
    store: Path, parts: Sequence[Part], token_dtype: str, encryption: Encryption = PLAIN, *, verify: bool = False
) -> list[Batch]:
    """The record batches of some parts, as views of the files; raises DataError for one that is not what it should be."""
    return [batch for part in parts for batch in _open_part(store, part, token_dtype, encryption, verify)]


def _open_part(store: Path, part: Part, token_dtype: str, encryption: Encryption, verify: bool) -> list[Batch]:
    batches = _open_arrow(store, part, encryption, verify)
    tokens = [column.values for batch in batches for column in batch.columns.values() if column.is_tokens]
    num_tokens = sum(map(len, tokens))
    if num_tokens != part.num_tokens or any(str(values.dtype) != token_dtype for values in tokens):
        raise DataError(
            f"{store / part.file}: has {num_tokens:,} tokens of {tokens[0].dtype if tokens else 'no type'}, "
            f"the store's manifest says {part.num_tokens:,} of {token_dtype}; {AGAIN}"
        )
    return batches


def _open_rows(store: Path, rows: RowsFile, encryption: Encryption, verify: bool) -> PackedRows:
    batches = _open_arrow(store, rows, encryption, verify)
    if len(batches) != 1 or batches[0].num_rows != rows.num_rows:
        num_rows = sum(batch.num_rows for batch in batches)
        raise DataError(f"{store / rows.file}: has {num_rows:,} rows, the store's manifest says {rows.num_rows:,}; {AGAIN}")
    pieces = batches[0].columns["pieces"]
    return PackedRows(pieces.offsets, pieces.values, rows.num_real_tokens, rows.num_places)


def _open_arrow(store: Path, expected: Part | RowsFile, encryption: Encryption, verify: bool) -> list[Batch]:
    """The record batches of one file, as views of it."""
    path = store / expected.file
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, though the store's manifest lists it; run: drumline prepare CONFIG") from None
    if num_bytes != expected.num_bytes:
        raise DataError(f"{path}: has {num_bytes:,} bytes, the store's manifest says {expected.num_bytes:,}; {AGAIN}")
    if verify and encryption.sha256(path, expected.file) != expected.sha256:
        raise DataError(f"{path}: its contents have changed since it was written; {AGAIN}")
    try:
        return read_batches(path, expected.file, encryption)
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: names that are no text, buffers of odd sizes
        raise DataError(f"{path}: is not a whole Arrow file ({error}); {AGAIN}") from None
