"""Opens a token store: maps its Arrow files into memory and holds them against the manifest. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.config import ENCODER_DECODERS, Config
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
from trainer.errors import DataError
from trainer.files import file_sha256

AGAIN = "delete it and run: drumline prepare CONFIG"


class TokenStore:
    """One split of a token store; nothing is read before it is asked for.

    What there is of each data set depends on the task: of language models `streams`, of all others `tables`, and where
    samples are packed by best fit `rows`.

    Raises DataError where a file is missing or is not what the manifest says. Sizes and counts are always compared;
    `verify` also reads every byte and compares the hashes.
    """

    def __init__(self, store: Path, split: Split, *, verify: bool = False) -> None:
        self.manifest: StoreManifest = read_manifest(store)
        self.split, self._store, self._verify = split, store, verify
        self._datasets = self.manifest.datasets(split)
        if not self._datasets:
            raise DataError(f"{store}: has no {split} data; give data.{split} and run: drumline prepare CONFIG")
        self._names = [f"{store}: {split} data of {dataset.path}" for dataset in self._datasets]
        dtype = self.manifest.token_dtype
        self._batches = [open_parts(store, dataset.parts, dtype, verify=verify) for dataset in self._datasets]

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
        return tuple(_open_rows(self._store, each.rows, self._verify) for each in self._datasets if each.rows)


def open_samples(config: Config, split: Split, *, fingerprint: str | None = None, is_evaluated: bool = False) -> list[Samples]:
    """The samples of a split, one entry for each of its data sets. Those that are evaluated, as the validation's always are,
    come as they are, without augmentation.

    Raises DataError where the store is damaged, too small for one sequence, or made with another tokenizer than the one
    of `fingerprint` (None: any will do).
    """
    store = Path(config.data.store)
    token_store = TokenStore(store, split)
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
            tokenizer, rows = _tokenizer(store), _rows(config, token_store)
            return [
                MaskedSamples(config, stream, packed, tokenizer)
                for stream, packed in zip(token_store.streams, rows, strict=True)
            ]
        case "classification":
            return _classification_samples(config, token_store, is_evaluated)
        case "translation" | "summarization":
            tokenizer, rows = _tokenizer(store), _rows(config, token_store)
            augmentation = _augmentation(config, is_evaluated, tokenizer)
            samples = EncoderDecoderSamples if config.model.family in ENCODER_DECODERS else DecoderSamples
            return [
                samples(Records(config, table, packed, tokenizer, augmentation))
                for table, packed in zip(token_store.tables, rows, strict=True)
            ]
        case "question_answering":
            tokenizer = _tokenizer(store)
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
    tokenizer, rows = _tokenizer(Path(config.data.store)), _rows(config, store)
    # One shape for all data sets, since a batch may have samples of several.
    num_places = max(1 if packed is None else packed.max_pieces for packed in rows)
    num_labels, augmentation = len(store.manifest.labels), _augmentation(config, is_evaluated, tokenizer)
    return [
        ClassificationSamples(Records(config, table, packed, tokenizer, augmentation), num_labels, num_places)
        for table, packed in zip(store.tables, rows, strict=True)
    ]


def _rows(config: Config, store: TokenStore) -> Sequence[PackedRows | None]:
    return store.rows if config.packing == "best_fit" else [None] * len(store.manifest.datasets(store.split))


def _tokenizer(store: Path) -> Tokenizer:
    return Tokenizer.load(store / TOKENIZER_NAME)


def _augmentation(config: Config, is_evaluated: bool, tokenizer: Tokenizer) -> TextAugmentation | None:
    """What changes texts: none but those of training are."""
    if is_evaluated or config.data.augmentation.is_off:
        return None
    return TextAugmentation(config, tokenizer)


def token_stream(name: str, batches: Sequence[pa.RecordBatch], end_of_text: int) -> TokenStream:
    """The column `tokens` of record batches, as one stream; `name` is for complaints."""
    columns = [batch.column("tokens") for batch in batches]
    segments = [column.values.to_numpy(zero_copy_only=True) for column in columns]
    row_ends = [column.offsets.to_numpy(zero_copy_only=True)[1:] for column in columns]
    starts = np.concatenate([[0], np.cumsum([len(segment) for segment in segments], dtype=np.int64)])
    return TokenStream(name, end_of_text, segments, row_ends, starts.astype(np.int64))


def open_parts(store: Path, parts: Sequence[Part], token_dtype: str, *, verify: bool = False) -> list[pa.RecordBatch]:
    """The record batches of some parts, as views of the files; raises DataError for one that is not what it should be."""
    return [batch for part in parts for batch in _open_part(store / part.file, part, token_dtype, verify)]


def _open_part(path: Path, part: Part, token_dtype: str, verify: bool) -> list[pa.RecordBatch]:
    batches = _open_arrow(path, part, verify)
    columns = [column for batch in batches for column in batch.columns if pa.types.is_large_list(column.type)]
    num_tokens = sum(len(column.values) for column in columns)
    if num_tokens != part.num_tokens or any(str(column.type.value_type) != token_dtype for column in columns):
        raise DataError(
            f"{path}: has {num_tokens:,} tokens of {columns[0].type.value_type if columns else 'no type'}, "
            f"the store's manifest says {part.num_tokens:,} of {token_dtype}; {AGAIN}"
        )
    return batches


def _open_rows(store: Path, rows: RowsFile, verify: bool) -> PackedRows:
    batches = _open_arrow(store / rows.file, rows, verify)
    if len(batches) != 1 or batches[0].num_rows != rows.num_rows:
        num_rows = sum(batch.num_rows for batch in batches)
        raise DataError(f"{store / rows.file}: has {num_rows:,} rows, the store's manifest says {rows.num_rows:,}; {AGAIN}")
    column = batches[0].column("pieces")
    starts, numbers = (array.to_numpy(zero_copy_only=True) for array in (column.offsets, column.values))
    return PackedRows(starts, numbers, rows.num_real_tokens, rows.num_places)


def _num_nulls(column: pa.Array) -> int:
    """Of a column's values, or of its lists and what is in them."""
    values = column.values if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else column
    return int(column.null_count + values.null_count)


def _open_arrow(path: Path, expected: Part | RowsFile, verify: bool) -> list[pa.RecordBatch]:
    """The record batches of one file, as views of it."""
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, though the store's manifest lists it; run: drumline prepare CONFIG") from None
    if num_bytes != expected.num_bytes:
        raise DataError(f"{path}: has {num_bytes:,} bytes, the store's manifest says {expected.num_bytes:,}; {AGAIN}")
    if verify and file_sha256(path) != expected.sha256:
        raise DataError(f"{path}: its contents have changed since it was written; {AGAIN}")
    try:
        # Closing gives the file's descriptor back at once; the arrays keep the mapping itself alive. Thousands of parts
        # would otherwise exceed the limit of open files.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()  # what it says of its buffers against their sizes; none is read
            if any(_num_nulls(column) for column in batch.columns):
                raise pa.ArrowInvalid("a value is missing")
        return batches
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is not a whole Arrow file ({error}); {AGAIN}") from None
