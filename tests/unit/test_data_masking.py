"""Which tokens a masked language model must guess, and what stands in their places."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.task_examples import example_config, example_tokenizer, ordinary_tokens
from trainer.data.masking import Masking, num_hidden
from trainer.errors import ConfigError

TOKENIZER = example_tokenizer()
SPECIALS = TOKENIZER.specials
WHOLE = {"masking": {"whole_words": True}}


def masked(tokens: np.ndarray, draw: int, **data: object) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets."""
    config = example_config("masked_language_modeling", "bert", length=256, **data)
    inputs = tokens.astype(np.int32)
    targets = Masking(config, TOKENIZER).hide(inputs, draw)
    return inputs, targets


def example_row(length: int, seed: int = 0) -> np.ndarray:
    words = np.random.default_rng(seed).choice(ordinary_tokens(TOKENIZER), length - 2)
    return np.array([SPECIALS.begin, *words, SPECIALS.separator])


@pytest.mark.parametrize("length", [3, 5, 12, 100, 256])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_so_many_are_hidden_as_the_rate_says(length: int, rate: float) -> None:
    row = example_row(length)
    for draw in range(5):
        _, targets = masked(row, draw, masking={"rate": rate})
        assert (targets >= 0).sum() == max(1, round(rate * (length - 2))) == num_hidden(rate, length - 2)


def test_targets_are_what_stood_there_and_nothing_else_changes() -> None:
    row = example_row(200)
    inputs, targets = masked(row, 3)
    hidden = targets >= 0
    assert targets[hidden].tolist() == row[hidden].tolist()
    assert inputs[~hidden].tolist() == row[~hidden].tolist()


def test_the_same_draw_hides_the_same_and_another_draw_others() -> None:
    row = example_row(200)
    for options in ({}, WHOLE):
        first, again, other = (masked(row, draw, **options) for draw in (7, 7, 8))
        assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
        assert not np.array_equal(first[1], other[1])


def test_another_seed_hides_others() -> None:
    row = example_row(200).astype(np.int32)
    config = example_config("masked_language_modeling", "bert", length=256)
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 6})})
    first, second = (Masking(each, TOKENIZER).hide(row.copy(), 1) for each in (config, other))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("options", [{}, WHOLE], ids=["tokens", "words"])
def test_special_tokens_are_never_hidden_nor_put_in(options: dict[str, object]) -> None:
    row = np.concatenate([example_row(20, seed) for seed in range(10)])
    special = [SPECIALS.begin, SPECIALS.separator, SPECIALS.padding, SPECIALS.end_of_text]
    is_special = np.isin(row, special)
    for draw in range(50):
        inputs, targets = masked(row, draw, **options)
        assert (targets[is_special] == -1).all()
        assert not np.isin(inputs[~is_special], special).any()


def test_eight_of_ten_become_the_mask_and_one_another_token() -> None:
    row = example_row(256)
    kinds = np.zeros(3)
    for draw in range(300):
        inputs, targets = masked(row, draw, masking={"rate": 0.5})
        hidden = targets >= 0
        is_mask = inputs[hidden] == SPECIALS.mask
        stays = inputs[hidden] == row[hidden]
        kinds += [is_mask.sum(), (~is_mask & ~stays).sum(), stays.sum()]
    shares = kinds / kinds.sum()
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.006)


def test_each_token_is_hidden_as_often_as_any_other() -> None:
    row = example_row(42)
    counts = sum((masked(row, draw, masking={"rate": 0.25})[1] >= 0).astype(int) for draw in range(2000))
    assert counts[1:-1] / 2000 == pytest.approx(np.full(40, 0.25), abs=0.05)


def test_words_are_hidden_as_wholes() -> None:
    continues = TOKENIZER.continues_word
    row = example_row(200)
    assert continues[row].any()
    words = np.cumsum(~continues[row] | (np.arange(200) <= 1))  # nothing continues [CLS]
    for draw in range(30):
        hidden = masked(row, draw, masking={"whole_words": True, "rate": 0.4})[1] >= 0
        for word in np.unique(words[hidden]):
            assert hidden[words == word].all()
        assert 0 < hidden.sum() <= num_hidden(0.4, 198)


def test_a_word_that_is_longer_than_what_may_be_hidden_is_hidden_all_the_same() -> None:
    begin, goes_on = (np.flatnonzero(TOKENIZER.continues_word == each)[-1] for each in (False, True))
    row = np.array([SPECIALS.begin, begin, goes_on, goes_on, SPECIALS.separator])
    _, targets = masked(row, 0, **WHOLE)
    assert (targets >= 0).tolist() == [False, True, True, True, False]


def test_a_row_of_special_tokens_alone_hides_nothing() -> None:
    _, targets = masked(np.array([SPECIALS.begin, SPECIALS.separator]), 0)
    assert (targets == -1).all()


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    config = example_config("masked_language_modeling", "bert")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: has no mask token"):
        Masking(config, example_tokenizer("character"))
