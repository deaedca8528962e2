"""Opens a token store: maps its Arrow files into memory and holds them against the manifest. No TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.data.manifest import Dataset, Part, Split, StoreManifest, read_manifest
from trainer.data.windows import DocumentWindows, PackedWindows, Samples, TokenStream
from trainer.errors import DataError
from trainer.files import file_sha256

AGAIN = "delete it and run: drumline prepare CONFIG"


class TokenStore:
    """One split of a token store; nothing is read before it is asked for.

    Raises DataError where a file is missing or is not what the manifest says. Sizes and counts are always compared;
    `verify` also reads every byte and compares the hashes.
    """

    def __init__(self, store: Path, split: Split, *, verify: bool = False) -> None:
        self.manifest: StoreManifest = read_manifest(store)
        datasets = self.manifest.datasets(split)
        if not datasets:
            raise DataError(f"{store}: has no {split} data; give data.{split} and run: drumline prepare CONFIG")
        self.streams: tuple[TokenStream, ...] = tuple(
            _open_stream(store, dataset, self.manifest, f"{store}: {split} data of {dataset.path}", verify)
            for dataset in datasets
        )


def open_samples(
    store: Path, split: Split, *, sequence_length: int, pack: bool, fingerprint: str | None = None
) -> list[Samples]:
    """The samples of a split, one entry for each of its data sets.

    Raises DataError where the store is damaged, too small for one sequence, or made with another tokenizer than the one
    of `fingerprint` (None: any will do).
    """
    token_store = TokenStore(store, split)
    made_with = token_store.manifest.tokenizer_fingerprint
    if fingerprint is not None and made_with != fingerprint:
        raise DataError(
            f"{store}: was made with tokenizer {made_with[:12]}, the model's is {fingerprint[:12]}; "
            "prepare the data with the model's tokenizer (data.tokenizer: {kind: pretrained, path: ...})"
        )
    windows = PackedWindows if pack else DocumentWindows
    return [windows(stream, sequence_length) for stream in token_store.streams]


def _open_stream(store: Path, dataset: Dataset, manifest: StoreManifest, name: str, verify: bool) -> TokenStream:
    segments, row_ends = [], []
    for part in dataset.parts:
        for column in _open_part(store / part.file, part, manifest.token_dtype, verify):
            segments.append(column.values.to_numpy(zero_copy_only=True))
            row_ends.append(column.offsets.to_numpy(zero_copy_only=True)[1:])
    starts = np.concatenate([[0], np.cumsum([len(segment) for segment in segments], dtype=np.int64)])
    return TokenStream(name, manifest.end_of_text, segments, row_ends, starts.astype(np.int64))


def _open_part(path: Path, part: Part, token_dtype: str, verify: bool) -> list[pa.LargeListArray]:
    """The column of tokens of each record batch of one file, as views of the file."""
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, though the store's manifest lists it; run: drumline prepare CONFIG") from None
    if num_bytes != part.num_bytes:
        raise DataError(f"{path}: has {num_bytes:,} bytes, the store's manifest says {part.num_bytes:,}; {AGAIN}")
    if verify and file_sha256(path) != part.sha256:
        raise DataError(f"{path}: its contents have changed since it was written; {AGAIN}")
    try:
        # Closing gives the file's descriptor back at once; the arrays keep the mapping itself alive. Thousands of parts
        # would otherwise exceed the limit of open files.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            columns = [reader.get_batch(number).column(0) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is not a whole Arrow file ({error}); {AGAIN}") from None
    num_tokens = sum(len(column.values) for column in columns)
    if num_tokens != part.num_tokens or any(str(column.type.value_type) != token_dtype for column in columns):
        raise DataError(
            f"{path}: has {num_tokens:,} tokens of {columns[0].type.value_type if columns else 'no type'}, "
            f"the store's manifest says {part.num_tokens:,} of {token_dtype}; {AGAIN}"
        )
    return columns
