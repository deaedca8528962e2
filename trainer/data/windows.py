"""Cuts streams of tokens into training samples: inputs, and as targets the tokens that follow.

B: samples of a batch, T: sequence length. A target of -1 does not count; a sample number of -1 asks for a row of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.arrow_files import Numbers
from trainer.data.manifest import num_samples
from trainer.errors import DataError

NOT_COUNTED = -1

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Feature:
    """The shape of one sample's tensor, always the same, and its type."""

    shape: tuple[int, ...]
    dtype: type[np.int32] | type[np.float32] = np.int32


Features = Mapping[str, Feature]
Arrays = dict[str, npt.NDArray[Any]]


class Samples(Protocol):
    """A finite set of samples that can be read in any order."""

    @property
    def num_samples(self) -> int: ...

    @property
    def features(self) -> Features:
        """What a sample consists of, by name."""
        ...

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        """Reads the samples `indices` [B]: for each feature an array [B, *shape]; an index of -1 asks for padding.

        What is random in a sample (augmentation, masking) is a function of `draws` [B]: in training the sample's place in
        the run's order, so that each epoch brings something new; in evaluation its index, so that it is always the same.
        """
        ...


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one data set as one long sequence, held as views of its files.

    `segments` follow each other; segment i begins at token `starts[i]`, and the last of the starts is the number of
    tokens. `row_offsets` are, segment by segment, where the rows of the store begin, counted from the segment's begin, and
    where the last of them ends.
    """

    name: str
    end_of_text: int
    segments: Sequence[Numbers]
    row_offsets: Sequence[Numbers]
    starts: Int64Array

    @property
    def num_tokens(self) -> int:
        return int(self.starts[-1])

    def read_into(self, row: Int32Array, begin: int) -> None:
        """Copies the tokens from `begin` on into `row`, over as many segments as that takes."""
        number = int(np.searchsorted(self.starts, begin, side="right")) - 1
        filled = 0
        while filled < len(row):
            segment = self.segments[number]
            offset = begin + filled - int(self.starts[number])
            taken = min(len(row) - filled, len(segment) - offset)
            row[filled : filled + taken] = segment[offset : offset + taken]
            filled += taken
            number += 1

    def document_ends(self) -> Int64Array:
        """Where each document ends in the stream: after the rows that end with the end-of-text token.

        A long document takes several rows, of which only the last ends with that token.
        """
        ends = []
        for segment, row_offsets, start in zip(self.segments, self.row_offsets, self.starts, strict=False):
            row_ends = np.asarray(row_offsets)[1:]
            last_tokens = segment[row_ends - 1]
            ends.append(row_ends[last_tokens == self.end_of_text] + start)
        return np.concatenate([*ends, np.zeros(0, np.int64)]).astype(np.int64)


def language_features(sequence_length: int) -> Features:
    """Inputs, and as targets the tokens that follow."""
    return {"inputs": Feature((sequence_length,)), "targets": Feature((sequence_length,))}


class PackedWindows:
    """Sample i is the tokens from i*T on, whatever documents they belong to: no position is wasted."""

    def __init__(self, stream: TokenStream, sequence_length: int) -> None:
        self._stream = stream
        self.sequence_length = sequence_length
        self.num_samples = num_samples(stream.num_tokens, sequence_length)
        if self.num_samples == 0:
            raise DataError(
                f"{stream.name}: has {stream.num_tokens:,} tokens, and one sequence takes {sequence_length + 1:,}; "
                "give more text or a smaller data.sequence_length"
            )

    @property
    def features(self) -> Features:
        return language_features(self.sequence_length)

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        length = self.sequence_length
        tokens = np.full((len(indices), length + 1), self._stream.end_of_text, np.int32)
        for row, index in zip(tokens, indices.tolist(), strict=True):
            if index >= 0:
                self._stream.read_into(row, index * length)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        targets = np.where(indices[:, None] >= 0, targets, np.int32(NOT_COUNTED))
        return {"inputs": np.ascontiguousarray(inputs), "targets": targets}


class DocumentWindows:
    """Every document begins a sample of its own and takes as many as it needs; the last one is padded.

    A document of L tokens, its end-of-text token included, has L-1 targets and so ceil((L-1)/T) samples: each token but
    the first is a target exactly once. Padded inputs are end-of-text tokens, padded targets -1. Takes 16 bytes of
    memory a document.
    """

    def __init__(self, stream: TokenStream, sequence_length: int) -> None:
        self._stream = stream
        self.sequence_length = sequence_length
        self._ends = stream.document_ends()
        lengths = np.diff(self._ends, prepend=0)
        self._samples_before = np.concatenate([[0], np.cumsum(-(-(lengths - 1) // sequence_length))])
        self.num_samples = int(self._samples_before[-1])
        if self.num_samples == 0:
            raise DataError(f"{stream.name}: has no document of two tokens or more; give more text")

    @property
    def features(self) -> Features:
        return language_features(self.sequence_length)

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        length = self.sequence_length
        inputs = np.full((len(indices), length), self._stream.end_of_text, np.int32)
        targets = np.full((len(indices), length), NOT_COUNTED, np.int32)
        documents = np.searchsorted(self._samples_before, indices, side="right") - 1
        for row, (index, document) in enumerate(zip(indices.tolist(), documents.tolist(), strict=True)):
            if index < 0:
                continue
            document_begin = int(self._ends[document - 1]) if document else 0
            begin = document_begin + (index - int(self._samples_before[document])) * length
            num_targets = min(length, int(self._ends[document]) - begin - 1)
            tokens = np.empty(num_targets + 1, np.int32)
            self._stream.read_into(tokens, begin)
            inputs[row, :num_targets] = tokens[:-1]
            targets[row, :num_targets] = tokens[1:]
        return {"inputs": inputs, "targets": targets}
