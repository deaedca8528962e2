"""Samples of streams of documents beyond those of `trainer.data.windows`: packed by best fit, and those that are masked.

B: samples of a batch, T: sequence length.
"""

from __future__ import annotations

import numpy as np

from trainer.config import Config
from trainer.data.assembly import document_pieces, num_special_tokens
from trainer.data.masking import Masking
from trainer.data.records import PackedRows
from trainer.data.samples.layout import Contents, Layout
from trainer.data.tokenizer import SpecialTokens, Tokenizer
from trainer.data.windows import (
    NOT_COUNTED,
    Arrays,
    Feature,
    Features,
    Int32Array,
    Int64Array,
    TokenStream,
)
from trainer.errors import DataError


class PackedDocuments:
    """Pieces of documents side by side in rows; each token but a document's first is a target exactly once.

    What comes after a piece's last token is its last target, and no input: so no place of it is without a target.
    """

    def __init__(self, stream: TokenStream, packed: PackedRows, sequence_length: int) -> None:
        self._stream, self._packed = stream, packed
        self.sequence_length = sequence_length
        self._begins, self._lengths = document_pieces(stream, sequence_length)
        self.num_samples = packed.num_rows

    @property
    def features(self) -> Features:
        return dict.fromkeys(("inputs", "targets", "segments", "positions"), Feature((self.sequence_length,)))

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        contents = Contents(indices, self._packed)
        lengths = self._lengths[contents.pieces]
        layout = Layout(contents, lengths, self.sequence_length)
        tokens = np.empty(int(lengths.sum()) + len(lengths), np.int32)
        ends = np.cumsum(lengths + 1)
        begins = ends - lengths - 1
        for piece, begin, end in zip(contents.pieces.tolist(), begins.tolist(), ends.tolist(), strict=True):
            self._stream.read_into(tokens[begin:end], int(self._begins[piece]))
        return {
            "inputs": layout.fill(np.delete(tokens, ends - 1), self._stream.end_of_text),
            "targets": layout.fill(np.delete(tokens, begins), NOT_COUNTED),
            "segments": layout.segments(),
            "positions": layout.positions(),
        }


class MaskedSamples:
    """[CLS] text [SEP], of whose tokens some are hidden. How the text comes is `config.packing`'s: the stream, cut whatever
    documents it is of; each document by itself, a long one in several pieces; or pieces of several side by side."""

    def __init__(self, config: Config, stream: TokenStream, packed: PackedRows | None, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a tokenizer without a mask token, DataError where the stream has not one sample."""
        self._stream, self._packed = stream, packed
        self._masking = Masking(config, tokenizer)
        self._specials: SpecialTokens = tokenizer.specials
        self._length = config.data.sequence_length
        room = self._length - num_special_tokens(config)
        if config.packing == "stream":
            num_windows = stream.num_tokens // room
            self._begins = np.arange(num_windows, dtype=np.int64) * room
            self._lengths = np.full(num_windows, room, np.int64)
        else:
            self._begins, self._lengths = document_pieces(stream, room)
        self.num_samples = len(self._begins) if packed is None else packed.num_rows
        if self.num_samples == 0:
            raise DataError(
                f"{stream.name}: has {stream.num_tokens:,} tokens, too few for a sample (one sequence takes {room:,} of a "
                "stream; a document at least two); give more text or a smaller data.sequence_length"
            )

    @property
    def features(self) -> Features:
        names = ["inputs", "targets", "segments"] + (["positions"] if self._packed is not None else [])
        return dict.fromkeys(names, Feature((self._length,)))

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        contents = Contents(indices, self._packed)
        lengths = self._lengths[contents.pieces] + 2
        layout = Layout(contents, lengths, self._length)
        inputs = layout.fill(self._read(contents.pieces, lengths), self._specials.padding)
        targets = np.full_like(inputs, NOT_COUNTED)
        num_real = np.bincount(contents.rows, lengths, contents.num_rows).astype(np.int64).tolist()
        for row, (length, draw) in enumerate(zip(num_real, draws.tolist(), strict=True)):
            if length:
                targets[row, :length] = self._masking.hide(inputs[row, :length], draw)
        arrays: Arrays = {"inputs": inputs, "targets": targets, "segments": layout.segments()}
        return arrays if self._packed is None else arrays | {"positions": layout.positions()}

    def _read(self, pieces: Int64Array, lengths: Int64Array) -> Int32Array:
        """The tokens of the pieces one after the other, each with its special tokens."""
        tokens = np.empty(int(lengths.sum()), np.int32)
        ends = np.cumsum(lengths)
        begins = ends - lengths
        tokens[begins], tokens[ends - 1] = self._specials.begin, self._specials.separator
        for piece, begin, end in zip(pieces.tolist(), begins.tolist(), ends.tolist(), strict=True):
            self._stream.read_into(tokens[begin + 1 : end - 1], int(self._begins[piece]))
        return tokens
