"""How records become sequences: special tokens, truncation, prompts, windows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.task_examples import (
    example_config,
    example_stream,
    example_table,
    example_texts,
    example_tokenizer,
    packed_rows,
)
from trainer.data.assembly import (
    classification_sequence,
    cut_longer,
    cut_pair,
    document_pieces,
    piece_lengths,
    question_windows,
    read_prompt,
)
from trainer.errors import ConfigError

TOKENIZER = example_tokenizer()
SPECIALS = TOKENIZER.specials
ROOM = 12


def cut_by_turns(first: int, second: int, room: int) -> tuple[int, int]:
    """BERT's own loop."""
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


def test_pairs_are_cut_as_bert_cuts_them() -> None:
    lengths = np.array([(a, b) for a in range(20) for b in range(20)])
    for room in range(1, 24):
        first, second = cut_longer(lengths[:, 0], lengths[:, 1], room)
        expected = [cut_by_turns(a, b, room) for a, b in lengths.tolist()]
        assert np.stack([first, second], 1).tolist() == [list(each) for each in expected]


def test_a_pair_that_fits_stays_whole() -> None:
    first, second = np.arange(5), np.arange(6)
    assert [len(each) for each in cut_pair(first, second, 11)] == [5, 6]
    assert [len(each) for each in cut_pair(first, second, 10)] == [5, 5]


def test_bert_reads_two_texts_between_its_special_tokens() -> None:
    config = example_config("classification", "bert", fields={"text_b": "b"})
    tokens, types = classification_sequence(config, SPECIALS, np.array([10, 11]), np.array([12]))
    assert tokens.tolist() == [SPECIALS.begin, 10, 11, SPECIALS.separator, 12, SPECIALS.separator]
    assert types.tolist() == [0, 0, 0, 0, 1, 1]
    tokens, types = classification_sequence(config, SPECIALS, np.array([10, 11]), None)
    assert tokens.tolist() == [SPECIALS.begin, 10, 11, SPECIALS.separator]
    assert types.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("family", "expected"), [("gpt", [10, 11, 12, SPECIALS.end_of_text]), ("bag_of_embeddings", [10, 11, 12])]
)
def test_other_families_read_texts_one_after_the_other(family: str, expected: list[int]) -> None:
    config = example_config("classification", family, fields={"text_b": "b"})
    tokens, _ = classification_sequence(config, SPECIALS, np.array([10, 11]), np.array([12]))
    assert tokens.tolist() == expected


@pytest.mark.parametrize("family", ["bert", "gpt", "bag_of_embeddings"])
def test_a_text_that_is_too_long_keeps_its_special_tokens(family: str) -> None:
    config = example_config("classification", family, length=ROOM)
    tokens, types = classification_sequence(config, SPECIALS, np.arange(100, 150), None)
    assert len(tokens) == len(types) == ROOM
    if family == "bert":
        assert (tokens[0], tokens[-1]) == (SPECIALS.begin, SPECIALS.separator)
    if family == "gpt":
        assert tokens[-1] == SPECIALS.end_of_text
    assert len(classification_sequence(config, SPECIALS, np.arange(100, 150), None, room=7)[0]) == 7


@pytest.mark.parametrize("family", ["bert", "gpt", "bag_of_embeddings"])
@pytest.mark.parametrize("is_pair", [False, True])
def test_lengths_of_classification_are_those_of_its_sequences(family: str, is_pair: bool) -> None:
    options = {"fields": {"text_b": "b"}} if is_pair else {}
    config = example_config("classification", family, length=ROOM, pack=True, **options)
    columns = {"text": example_texts(range(20))} | ({"text_b": example_texts(range(19, -1, -1))} if is_pair else {})
    table = example_table(labels=[[0]] * 20, **columns)
    found = piece_lengths(config, TOKENIZER, table)
    for number in range(20):
        second = table.tokens("text_b", number) if is_pair else None
        tokens, _ = classification_sequence(config, SPECIALS, table.tokens("text", number), second)
        assert found[number].tolist() == [len(tokens)]


def test_a_piece_has_room_for_its_back_translation() -> None:
    config = example_config("classification", "gpt", length=ROOM, pack=True)
    table = example_table(text=example_texts([3, 5]), back_translation=example_texts([6, 0]), labels=[[0], [1]])
    assert piece_lengths(config, TOKENIZER, table).tolist() == [[7], [6]]


def test_documents_are_cut_into_pieces_that_read_all_but_their_end() -> None:
    stream = example_stream(example_texts([0, 1, 4, 5, 9]), num_segments=2)
    begins, lengths = document_pieces(stream, 4)
    assert begins.tolist() == [1, 3, 8, 12, 14, 18, 22]
    assert lengths.tolist() == [1, 4, 4, 1, 4, 4, 1]


def test_pieces_of_masked_documents_have_room_for_special_tokens() -> None:
    stream = example_stream(example_texts([4, 9]))
    config = example_config("masked_language_modeling", "bert", length=6, pack="best_fit")
    assert piece_lengths(config, TOKENIZER, stream).tolist() == [[6], [6], [6], [3]]
    assert packed_rows(config, stream).num_rows == 4


def test_a_prompt_stands_around_the_source() -> None:
    config = example_config("translation", "gpt", prompt="alpha {source} beta")
    before, after = TOKENIZER.encode("alpha "), TOKENIZER.encode(" beta")
    source = np.arange(50, 60)
    assert read_prompt(config, TOKENIZER).around(source, 50).tolist() == [*before, *source, *after]
    room = len(before) + len(after) + 3
    assert read_prompt(config, TOKENIZER).around(source, room).tolist() == [*before, *source[:3], *after]


def test_a_source_without_a_prompt_says_where_it_ends() -> None:
    source = np.arange(50, 53)
    for family, end in (("gpt", SPECIALS.separator), ("t5", SPECIALS.end_of_text), ("encoder_decoder", SPECIALS.end_of_text)):
        assert read_prompt(example_config("translation", family), TOKENIZER).around(source, 10).tolist() == [50, 51, 52, end]


def test_a_prompt_without_room_for_a_source_is_refused() -> None:
    config = example_config("translation", "t5", length=4, prompt="alpha beta gamma delta {source}")
    with pytest.raises(ConfigError, match=r"data\.prompt: takes \d+ tokens"):
        read_prompt(config, TOKENIZER)


def test_a_short_context_is_one_window() -> None:
    config = example_config("question_answering", "bert", window_overlap=4)
    (window,) = question_windows(config, SPECIALS, np.array([50, 51]), np.arange(60, 70))
    separator = SPECIALS.separator
    assert window.tokens.tolist() == [SPECIALS.begin, 50, 51, separator, *range(60, 70), separator]
    assert window.types.tolist() == [0] * 4 + [1] * 11
    assert (window.context_place, window.first_context_token, window.num_context_tokens) == (4, 0, 10)


def test_windows_share_tokens_and_cover_the_context() -> None:
    config = example_config("question_answering", "bert", window_overlap=4)
    context = np.arange(1000, 1050)
    windows = question_windows(config, SPECIALS, np.array([50, 51]), context)
    seen: list[int] = []
    for window in windows:
        end = window.context_place + window.num_context_tokens
        part = window.tokens[window.context_place : end].tolist()
        assert part == context[window.first_context_token :][: len(part)].tolist()
        assert len(window.tokens) <= 24
        if seen:
            assert part[:4] == seen[-4:]
        seen += part[4:] if seen else part
    assert seen == context.tolist()
    assert len(windows) == 4  # 19 places for the context, of which each window but the first brings 15


@pytest.mark.parametrize("length", [0, 1, 30])
def test_a_question_of_any_length_leaves_room_for_the_context(length: int) -> None:
    config = example_config("question_answering", "bert", window_overlap=8)
    windows = question_windows(config, SPECIALS, np.full(length, 50), np.arange(1000, 1040))
    assert max(len(each.tokens) for each in windows) == 24
    assert windows[-1].first_context_token + windows[-1].num_context_tokens == 40
    assert len(windows) < 12


def test_a_question_without_a_context_is_one_window() -> None:
    config = example_config("question_answering", "bert", window_overlap=4)
    (window,) = question_windows(config, SPECIALS, np.array([50]), np.zeros(0, np.uint16))
    assert window.num_context_tokens == 0
