"""Small configurations, a tokenizer and records for the tests of tasks and their samples. No TensorFlow."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.config import ENCODER_DECODERS, Config, TokenizerConfig
from trainer.data.arrow_files import batch_of
from trainer.data.assembly import capacities, piece_lengths
from trainer.data.augmentation import TextAugmentation
from trainer.data.packing import pack_best_fit
from trainer.data.records import PackedRows, RecordTable
from trainer.data.samples.classification import ClassificationSamples
from trainer.data.samples.records import Records
from trainer.data.samples.text_to_text import DecoderSamples, EncoderDecoderSamples
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import TokenStream

WORDS = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    *("nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon"),
)

MODELS: dict[str, dict[str, Any]] = {
    "gpt": {"family": "gpt", "num_layers": 2, "num_heads": 2, "width": 16},
    "bert": {"family": "bert", "num_layers": 2, "num_heads": 2, "width": 16},
    "bert, mean": {"family": "bert", "num_layers": 2, "num_heads": 2, "width": 16, "pooling": "mean"},
    "t5": {"family": "t5", "num_layers": 2, "num_heads": 2, "width": 16},
    "encoder_decoder": {"family": "encoder_decoder", "num_layers": 2, "num_heads": 2, "width": 16},
    "bag_of_embeddings": {"family": "bag_of_embeddings", "width": 16},
}


def example_config(task: str, family: str, *, length: int = 24, train: Mapping[str, Any] | None = None, **data: Any) -> Config:
    """A configuration of `task`; `data` and `train` are changes of their sections."""
    source = {"path": "x", "target_path": "y"}
    file_format = "lines" if task in ("translation", "summarization") else "jsonl"
    return Config.model_validate(
        {
            "run": {"name": "test", "seed": 5},
            "task": task,
            "data": {
                "store": "store",
                "train": [source if file_format == "lines" else {"path": "x"}],
                "format": file_format,
                "sequence_length": length,
                "tokenizer": {"kind": "wordpiece", "vocabulary_size": 400, "lowercase": True},
                **data,
            },
            "model": MODELS[family],
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1, "global_batch_size": 4, **(train or {})},
            "checkpoint": {"best_metric": "loss"},
        }
    )


@functools.cache
def example_tokenizer(kind: str = "wordpiece") -> Tokenizer:
    """Of the words of `WORDS`, of which each is one token or some; a character tokenizer has no mask token."""
    options = {} if kind == "character" else {"vocabulary_size": 400}
    return Tokenizer.train(TokenizerConfig(kind=kind, **options), [" ".join(WORDS)] * 3 + list(WORDS))


def ordinary_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """The numbers of the tokens that text may become."""
    known = tokenizer.specials
    special = {known.end_of_text, known.begin, known.separator, known.padding, known.mask, known.unknown}
    return np.array([number for number in range(tokenizer.vocabulary_size) if number not in special])


def example_texts(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Texts of so many tokens."""
    tokens, generator = ordinary_tokens(example_tokenizer()), np.random.default_rng(seed)
    return [generator.choice(tokens, length).astype(np.uint16) for length in lengths]


def example_table(num_batches: int = 2, **columns: Sequence[Any]) -> RecordTable:
    """Records whose columns are token arrays, lists of numbers or strings, in several record batches."""
    num_records = len(next(iter(columns.values())))
    bounds = np.linspace(0, num_records, num_batches + 1).astype(int)
    batches = []
    for begin, end in itertools.pairwise(bounds):
        arrays = {name: _array(list(values)[begin:end]) for name, values in columns.items()}
        batches.append(batch_of(pa.record_batch(list(arrays.values()), names=list(arrays))))
    return RecordTable("example", batches)


def _array(values: list[Any]) -> pa.Array:
    if isinstance(values[0], str):
        return pa.array(values, pa.large_string())
    if isinstance(values[0], np.ndarray):
        offsets = np.cumsum([0, *map(len, values)])
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(values)))
    flat = [each for value in values for each in value]
    offsets = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(flat, pa.int32()))


def example_stream(documents: Sequence[np.ndarray], num_segments: int = 1) -> TokenStream:
    """A stream of documents, each with its end-of-text token."""
    end_of_text = example_tokenizer().end_of_text
    rows = [np.append(each, end_of_text).astype(np.uint16) for each in documents]
    bounds = np.linspace(0, len(rows), num_segments + 1).astype(int)
    parts = [rows[begin:end] for begin, end in itertools.pairwise(bounds)]
    segments = [np.concatenate(part) for part in parts]
    row_offsets = [np.cumsum([0, *map(len, part)]) for part in parts]
    starts = np.concatenate([[0], np.cumsum([len(segment) for segment in segments])]).astype(np.int64)
    return TokenStream("example", end_of_text, segments, row_offsets, starts)


def packed_rows(config: Config, data: RecordTable | TokenStream) -> PackedRows:
    """The rows that `prepare` would make."""
    lengths = piece_lengths(config, example_tokenizer(), data)
    starts, numbers = pack_best_fit(lengths, capacities(config))
    return PackedRows(starts, numbers, int(lengths.sum()), (len(starts) - 1) * sum(capacities(config)))


def example_records(config: Config, table: RecordTable) -> Records:
    """Packed and changed where the configuration says so, as those of training are."""
    packed = packed_rows(config, table) if config.packing == "best_fit" else None
    augmentation = None if config.data.augmentation.is_off else TextAugmentation(config, example_tokenizer())
    return Records(config, table, packed, example_tokenizer(), augmentation)


def example_classification(config: Config, table: RecordTable, num_labels: int = 3) -> ClassificationSamples:
    records = example_records(config, table)
    return ClassificationSamples(records, num_labels, records.packed.max_pieces if records.packed else 1)


def example_text_to_text(config: Config, table: RecordTable) -> EncoderDecoderSamples | DecoderSamples:
    kind = EncoderDecoderSamples if config.model.family in ENCODER_DECODERS else DecoderSamples
    return kind(example_records(config, table))
