"""Windows hold every token as a target exactly once, wherever parts and record batches end."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.windows import DocumentWindows, PackedWindows, Samples, TokenStream
from trainer.errors import DataError

END = 9


def stream(*segments: list[list[int]]) -> TokenStream:
    """A stream of segments, each of which is a list of rows."""
    arrays = [np.array([token for row in rows for token in row], np.uint16) for rows in segments]
    row_offsets = [np.cumsum([0, *map(len, rows)]) for rows in segments]
    starts = np.cumsum([0, *(len(array) for array in arrays)])
    return TokenStream("corpus.txt", END, arrays, row_offsets, starts)


def gather(windows: Samples, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets; nothing in them is random."""
    arrays = windows.gather(np.array(indices), np.array(indices))
    assert {name: array.shape[1:] for name, array in arrays.items()} == {
        name: feature.shape for name, feature in windows.features.items()
    }
    return arrays["inputs"], arrays["targets"]


def test_packed_windows_cross_segments_and_targets_are_the_next_tokens() -> None:
    tokens = np.arange(23) % 8
    cut = [tokens[:3], tokens[3:4], tokens[4:15], tokens[15:]]
    windows = PackedWindows(stream(*([part.tolist()] for part in cut)), 4)
    assert windows.num_samples == 5
    inputs, targets = gather(windows, list(range(5)))
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.ravel().tolist() == tokens[:20].tolist()
    assert targets.ravel().tolist() == tokens[1:21].tolist()


def test_samples_can_be_read_in_any_order_and_padding_does_not_count() -> None:
    windows = PackedWindows(stream([list(range(9))]), 2)
    inputs, targets = gather(windows, [3, -1, 0])
    assert inputs.tolist() == [[6, 7], [END, END], [0, 1]]
    assert targets.tolist() == [[7, 8], [-1, -1], [1, 2]]


def test_the_last_window_needs_one_token_more_than_it_has_inputs() -> None:
    assert PackedWindows(stream([[0] * 9]), 4).num_samples == 2
    assert PackedWindows(stream([[0] * 8]), 4).num_samples == 1
    with pytest.raises(DataError, match=r"corpus.txt: has 4 tokens, and one sequence takes 5; give more text or"):
        PackedWindows(stream([[0] * 4]), 4)


def test_documents_begin_samples_of_their_own() -> None:
    windows = DocumentWindows(stream([[1, 2, END]], [[3, 4, 5, 6], [7, END], [END], [8, END]]), 3)
    assert windows.num_samples == 4
    inputs, targets = gather(windows, [0, 1, 2, 3, -1])
    assert inputs.tolist() == [[1, 2, END], [3, 4, 5], [6, 7, END], [8, END, END], [END] * 3]
    assert targets.tolist() == [[2, END, -1], [4, 5, 6], [7, END, -1], [END, -1, -1], [-1] * 3]


def test_every_token_but_a_document_s_first_is_a_target_exactly_once() -> None:
    generator = np.random.default_rng(0)
    documents, token = [], 10
    for length in generator.integers(0, 30, 200).tolist():
        documents.append([*range(token, token + length), END])
        token += length
    segments = [documents[begin : begin + 7] for begin in range(0, 200, 7)]
    windows = DocumentWindows(stream(*segments), 8)
    inputs, targets = gather(windows, list(range(windows.num_samples)))
    expected = [token for document in documents for token in document[1:]]
    counted = targets[targets >= 0]
    assert sorted(counted.tolist()) == sorted(expected)
    # Where a target counts and is not an end, the input before it is the number before it.
    is_inner = (targets >= 0) & (targets != END)
    assert np.array_equal(inputs[is_inner], targets[is_inner] - 1)


def test_documents_without_any_target_are_refused() -> None:
    with pytest.raises(DataError, match="no document of two tokens"):
        DocumentWindows(stream([[END], [END]]), 4)
