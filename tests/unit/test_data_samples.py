"""What samples of records are: tokens, segments, positions, places and targets, in rows of their own and packed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import (
    example_classification,
    example_config,
    example_stream,
    example_table,
    example_text_to_text,
    example_texts,
    example_tokenizer,
    packed_rows,
)
from trainer.data.assembly import classification_sequence, document_pieces, question_windows, read_prompt
from trainer.data.records import RecordTable
from trainer.data.samples.documents import MaskedSamples, PackedDocuments
from trainer.data.samples.question_answering import QuestionSamples
from trainer.data.windows import Arrays, DocumentWindows, Samples
from trainer.errors import DataError

TOKENIZER = example_tokenizer()
SPECIALS = TOKENIZER.specials
LENGTHS = (3, 9, 1, 5, 14, 0, 2, 7, 4, 30)


def everything(samples: Samples) -> Arrays:
    """All samples, after one row of padding; their shapes and types are as `features` says."""
    indices = np.arange(-1, samples.num_samples)
    arrays = samples.gather(indices, indices)
    assert list(arrays) == list(samples.features)
    for name, feature in samples.features.items():
        assert arrays[name].shape == (len(indices), *feature.shape), name
        assert arrays[name].dtype == feature.dtype, name
    return arrays


def texts_in(tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> list[list[int]]:
    """The texts of rows [B, T], in order; their positions count from 0."""
    found = []
    for row, numbers, places in zip(tokens, segments, positions, strict=True):
        for number in range(1, numbers.max() + 1):
            found.append(row[numbers == number].tolist())
            assert places[numbers == number].tolist() == list(range(len(found[-1])))
        assert (places[numbers == 0] == 0).all()
    return found


def sorted_texts(texts: Sequence[Any]) -> list[list[int]]:
    return sorted([int(token) for token in text] for text in texts)


@pytest.mark.parametrize("family", ["bert", "gpt", "bag_of_embeddings"])
@pytest.mark.parametrize("pack", [False, True])
def test_texts_to_classify_come_with_their_labels_and_places(family: str, pack: bool) -> None:
    config = example_config("classification", family, pack=pack)
    texts = example_texts(LENGTHS)
    labels = [[number % 3] for number in range(len(LENGTHS))]
    arrays = everything(example_classification(config, example_table(text=texts, labels=labels)))
    expected = [classification_sequence(config, SPECIALS, text, None)[0].tolist() for text in texts]
    found = []
    for row in range(len(arrays["inputs"])):
        for number in range(arrays["labels"].shape[1]):
            tokens = arrays["inputs"][row][arrays["segments"][row] == number + 1].tolist()
            label = arrays["labels"][row, number]
            if label < 0:
                assert not tokens
                continue
            found.append((tokens, label))
            if tokens:
                place = arrays["places"][row, number]
                first = int(np.flatnonzero(arrays["segments"][row] == number + 1)[0])
                assert place == (first if family == "bert" else first + len(tokens) - 1)
    assert sorted(found) == sorted(zip(expected, [label for (label,) in labels], strict=True))
    assert (len(arrays["inputs"]) < len(texts)) == pack
    assert (arrays["inputs"][arrays["segments"] == 0] == SPECIALS.padding).all()


def test_a_pair_has_types_only_for_bert() -> None:
    columns = {"text": example_texts([3]), "text_b": example_texts([2]), "labels": [[1]]}
    for family in ("bert", "gpt"):
        config = example_config("classification", family, fields={"text_b": "b"})
        arrays = everything(example_classification(config, example_table(1, **columns)))
        assert ("types" in arrays) == (family == "bert")
        if family == "bert":
            assert arrays["types"][1, :9].tolist() == [0] * 5 + [1] * 3 + [0]


def test_several_labels_are_a_row_of_noughts_and_ones() -> None:
    config = example_config("classification", "bert", multi_label=True)
    arrays = everything(example_classification(config, example_table(text=example_texts([3, 2, 4]), labels=[[0, 2], [], [1]])))
    assert arrays["labels"].tolist() == [[[-1, -1, -1]], [[1, 0, 1]], [[0, 0, 0]], [[0, 1, 0]]]


@pytest.mark.parametrize("family", ["t5", "encoder_decoder"])
@pytest.mark.parametrize("pack", [False, True])
def test_an_encoder_decoder_reads_the_source_and_writes_the_target(family: str, pack: bool) -> None:
    config = example_config("translation", family, pack=pack, target_length=20, prompt="alpha {source}")
    sources, targets = example_texts(LENGTHS), example_texts(LENGTHS[::-1], seed=1)
    arrays = everything(example_text_to_text(config, example_table(source=sources, target=targets)))
    places = np.arange(24)[None], np.arange(20)[None]
    if pack:
        positions = arrays["source_positions"], arrays["target_positions"]
    else:
        positions = tuple(
            where * (arrays[name] > 0) for where, name in zip(places, ("source_segments", "target_segments"), strict=True)
        )
    prompt = read_prompt(config, TOKENIZER)
    found_sources = texts_in(arrays["source"], arrays["source_segments"], positions[0])
    found_targets = texts_in(arrays["targets"], arrays["target_segments"], positions[1])
    found_inputs = texts_in(arrays["inputs"], arrays["target_segments"], positions[1])
    end, first = SPECIALS.end_of_text, SPECIALS.padding if family == "t5" else SPECIALS.end_of_text
    expected = [
        ([*prompt.before, *source[: 23 - len(prompt.before)], end], [*target[:19], end])
        for source, target in zip(sources, targets, strict=True)
    ]
    assert sorted(zip(found_sources, found_targets, strict=True)) == sorted(
        ([*map(int, a)], [*map(int, b)]) for a, b in expected
    )
    assert found_inputs == [[first, *target[:-1]] for target in found_targets]
    assert (arrays["targets"][arrays["target_segments"] == 0] == -1).all()


@pytest.mark.parametrize("pack", [False, True])
def test_a_decoder_is_asked_for_the_target_alone(pack: bool) -> None:
    config = example_config("summarization", "gpt", pack=pack, prompt="{source} beta")
    sources, targets = example_texts(LENGTHS), example_texts((2, 4, 3, 1, 20, 6, 0, 5, 2, 1), seed=1)
    arrays = everything(example_text_to_text(config, example_table(source=sources, target=targets)))
    positions = arrays["positions"] if pack else np.arange(24) * (arrays["segments"] > 0)
    inputs = texts_in(arrays["inputs"], arrays["segments"], positions)
    expected = texts_in(arrays["targets"], arrays["segments"], positions)
    after = read_prompt(config, TOKENIZER).after.tolist()
    found = []
    for read, asked in zip(inputs, expected, strict=True):
        num_prompt = asked.count(-1) + 1
        assert asked[: num_prompt - 1] == [-1] * (num_prompt - 1)
        assert read[num_prompt:] == asked[num_prompt - 1 : -1]
        assert asked[-1] == SPECIALS.end_of_text
        assert read[:num_prompt][-len(after) :] == after
        found.append((read[: num_prompt - len(after)], asked[num_prompt - 1 : -1]))
    whole = [(a.tolist(), b.tolist()) for a, b in zip(sources, targets, strict=True) if len(a) + len(b) + len(after) <= 24]
    cut = [each for each in found if each not in whole]
    assert sorted(each for each in found if each in whole) == sorted(whole)
    assert len(cut) == 2
    for source, target in cut:
        assert len(source) + len(target) + len(after) == 24
    assert (arrays["targets"][arrays["segments"] == 0] == -1).all()


def question_table() -> RecordTable:
    contexts = example_texts([40, 6])
    offsets = [[bound for token in range(len(each)) for bound in (2 * token, 2 * token + 1)] for each in contexts]
    return example_table(
        1,
        context=[contexts[0], contexts[0], contexts[1]],
        question=example_texts([2, 3, 2], seed=3),
        context_offsets=[offsets[0], offsets[0], offsets[1]],
        answer=[[18, 20], [], [0, 5]],
        context_text=[
            " ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"),
            " ".join("abcdefghijklmnopqrstuvwxyz"),
            "a b c d e f",
        ],
        question_id=["first", "none", "short"],
        answers=[json.dumps(["s t u"]), "[]", json.dumps(["a b c d e f"])],
    )


def test_each_window_of_a_context_is_a_sample() -> None:
    config = example_config("question_answering", "bert", window_overlap=6)
    table = question_table()
    samples = QuestionSamples(config, table, TOKENIZER)
    arrays = everything(samples)
    windows = [
        window
        for record in range(3)
        for window in question_windows(config, SPECIALS, table.tokens("question", record), table.tokens("context", record))
    ]
    assert samples.num_samples == len(windows) == sum(samples.num_windows)
    for row, window in enumerate(windows, 1):
        num_tokens = len(window.tokens)
        assert arrays["inputs"][row, :num_tokens].tolist() == window.tokens.tolist()
        assert arrays["types"][row, :num_tokens].tolist() == window.types.tolist()
        assert arrays["segments"][row].tolist() == [1] * num_tokens + [0] * (24 - num_tokens)
        mask = np.flatnonzero(arrays["context_mask"][row])
        assert mask.tolist() == list(range(window.context_place, window.context_place + window.num_context_tokens))
    assert (arrays["start"][0], arrays["end"][0]) == (-1, -1)


def test_an_answer_counts_in_the_windows_that_hold_all_of_it() -> None:
    config = example_config("question_answering", "bert", window_overlap=6)
    samples = QuestionSamples(config, question_table(), TOKENIZER)
    arrays = samples.gather(np.arange(samples.num_samples), np.arange(samples.num_samples))
    records = samples.record_of(np.arange(samples.num_samples))
    found: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for index, record in enumerate(records.tolist()):
        start, end = int(arrays["start"][index, 0]), int(arrays["end"][index, 0])
        if (start, end) != (0, 0):
            found[record].append(samples.text_at(index, start, end))
    assert found[0] and set(found[0]) == {"s t u"}
    assert found[1] == []
    assert found[2] == ["a b c d e f"]
    assert samples.answers(0) == ["s t u"] and samples.answers(1) == []


def test_packed_documents_have_each_token_but_the_first_as_a_target_once() -> None:
    documents = example_texts((3, 9, 0, 1, 5, 60, 2, 23, 24, 25))
    stream = example_stream(documents, num_segments=3)
    config = example_config("language_modeling", "gpt", pack="best_fit")
    samples = PackedDocuments(stream, packed_rows(config, stream), 24)
    arrays = everything(samples)
    inputs = texts_in(arrays["inputs"], arrays["segments"], arrays["positions"])
    targets = texts_in(arrays["targets"], arrays["segments"], arrays["positions"])
    for read, asked in zip(inputs, targets, strict=True):
        assert read[1:] == asked[:-1]
    assert sorted(token for asked in targets for token in asked) == sorted(
        token for each in documents if len(each) for token in [*each[1:].tolist(), SPECIALS.end_of_text]
    )
    assert (
        (arrays["targets"] >= 0).sum()
        == (arrays["segments"] > 0).sum()
        == len(documents) - 1 + sum(max(0, len(each) - 1) for each in documents)
    )
    alone = DocumentWindows(stream, 24)
    assert alone.num_samples == len(inputs)


@pytest.mark.parametrize("pack", [True, False, "best_fit"])
def test_masked_texts_stand_between_special_tokens(pack: bool | str) -> None:
    documents = example_texts((3, 9, 0, 1, 5, 60, 2))
    stream = example_stream(documents, num_segments=2)
    config = example_config("masked_language_modeling", "bert", pack=pack)
    packed = packed_rows(config, stream) if pack == "best_fit" else None
    arrays = everything(MaskedSamples(config, stream, packed, TOKENIZER))
    restored = np.where(arrays["targets"] >= 0, arrays["targets"], arrays["inputs"])
    positions = arrays.get("positions", np.arange(24) * (arrays["segments"] > 0))
    found = texts_in(restored, arrays["segments"], positions)
    assert all((text[0], text[-1]) == (SPECIALS.begin, SPECIALS.separator) for text in found)
    if pack is True:
        whole = np.concatenate([np.append(each, SPECIALS.end_of_text) for each in documents])
        assert [text[1:-1] for text in found] == whole[: len(whole) // 22 * 22].reshape(-1, 22).tolist()
    else:
        begins, lengths = document_pieces(stream, 22)
        whole = np.concatenate(stream.segments)
        expected = [whole[a : a + n] for a, n in zip(begins, lengths, strict=True)]
        assert sorted_texts(text[1:-1] for text in found) == sorted_texts(expected)
    num_real = (arrays["segments"] > 0).sum(1)
    assert ((arrays["targets"] >= 0).sum(1)[1:] >= 1).all() and num_real[0] == 0


def test_validation_hides_the_same_tokens_each_time() -> None:
    stream = example_stream(example_texts([200]))
    config = example_config("masked_language_modeling", "bert")
    samples = MaskedSamples(config, stream, None, TOKENIZER)
    indices = np.arange(samples.num_samples)
    first, again, other = (samples.gather(indices, draws)["targets"] for draws in (indices, indices, indices + 100))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_stream_too_short_for_a_row_is_refused() -> None:
    config = example_config("masked_language_modeling", "bert")
    with pytest.raises(DataError, match="too few for a sample"):
        MaskedSamples(config, example_stream(example_texts([5])), None, TOKENIZER)
