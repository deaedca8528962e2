"""Packs the pieces of a data set into rows by best fit, and writes which lie in which: a file of the store."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.config import Config
from trainer.data.assembly import capacities, piece_lengths
from trainer.data.manifest import Part, RowsFile, store_settings
from trainer.data.packing import pack_best_fit
from trainer.data.records import RecordTable
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import Int64Array, TokenStream
from trainer.encryption.files import Encryption
from trainer.errors import DataError
from trainer.files import put_in_place, temporary_name

logger = logging.getLogger(__name__)

# Sides that are full to shares this far apart are worth telling of.
IMBALANCE = 0.05


def rows_origin(config: Config, tokenizer: Tokenizer, parts: Sequence[Part]) -> str:
    """A hash of all that the rows of a data set follow from."""
    content: list[Any] = [store_settings(config)["pack"], tokenizer.fingerprint, [part.sha256 for part in parts]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_rows(
    store: Path, file: str, config: Config, tokenizer: Tokenizer, data: RecordTable | TokenStream, origin: str
) -> RowsFile:
    """Decides the rows of a data set, and writes a column `pieces` of their numbers; the file appears whole.

    Raises DataError where there is nothing to pack.
    """
    lengths = piece_lengths(config, tokenizer, data)
    if not len(lengths):
        raise DataError(f"{data.name}: has no document of two tokens or more; give more text")
    starts, numbers = pack_best_fit(lengths, capacities(config))
    if lengths.shape[1] == 2:
        _tell_imbalance(config, data.name, lengths, len(starts) - 1)
    kind = pa.large_list(pa.field("item", pa.int64(), nullable=False))
    pieces = pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), pa.array(numbers, pa.int64()), type=kind)
    schema = pa.schema([pa.field("pieces", kind, nullable=False)])
    path = store / file
    temporary = temporary_name(path)
    try:
        encryption = Encryption.of(config.security)
        with encryption.new_file(temporary, file) as output, pa.ipc.new_file(output, schema) as writer:
            writer.write_batch(pa.record_batch([pieces], schema=schema))
        num_bytes, sha256 = temporary.stat().st_size, encryption.sha256_of_new(output, temporary, file)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    num_rows = len(starts) - 1
    return RowsFile(
        file=file,
        num_rows=num_rows,
        num_pieces=len(lengths),
        num_real_tokens=int(lengths.sum()),
        num_places=num_rows * sum(capacities(config)),
        num_bytes=num_bytes,
        sha256=sha256,
        origin=origin,
    )


def _tell_imbalance(config: Config, name: str, lengths: Int64Array, num_rows: int) -> None:
    """The side whose texts are shorter than the row's lengths suggest stays partly empty, however rows are filled."""
    source_share, target_share = lengths.sum(axis=0) / (num_rows * np.array(capacities(config)))
    if abs(source_share - target_share) <= IMBALANCE:
        return
    total_source, total_target = lengths.sum(axis=0).tolist()
    better = max(2, round(config.data.sequence_length * total_target / max(1, total_source)))
    logger.info(
        "%s: real tokens fill %.1f%% of the sources' places and %.1f%% of the targets'; "
        "with data.target_length %d beside data.sequence_length %d both would be full",
        name,
        100 * source_share,
        100 * target_share,
        better,
        config.data.sequence_length,
    )
