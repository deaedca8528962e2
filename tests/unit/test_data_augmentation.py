"""Changes to training texts: as often as asked for, the same for the same draw, and never in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import (
    example_classification,
    example_config,
    example_table,
    example_text_to_text,
    example_texts,
    example_tokenizer,
    packed_rows,
)
from trainer.data.augmentation import TextAugmentation
from trainer.data.samples.classification import ClassificationSamples
from trainer.errors import ConfigError, DataError

TOKENIZER = example_tokenizer()
SPECIALS = TOKENIZER.specials
TEXT = np.arange(1000, 1050, dtype=np.uint16)  # no tokens of the tokenizer, but each known by its number
DRAWS = 2000


def augmentation(**options: Any) -> TextAugmentation:
    return TextAugmentation(example_config("classification", "bert", augmentation=options), TOKENIZER)


def changed(draw: int, text: np.ndarray = TEXT, back: np.ndarray | None = None, **options: Any) -> np.ndarray:
    changes = augmentation(**options)
    return changes.change(text, changes.generator(draw), back)


@pytest.mark.parametrize(
    "options", [{"token_dropout": 0.3}, {"token_swap": 0.3}, {"span_masking": 0.3}], ids=lambda o: next(iter(o))
)
def test_the_same_draw_changes_the_same_and_another_draw_others(options: dict[str, float]) -> None:
    first, again, other = (changed(draw, **options) for draw in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, TEXT)
    assert np.array_equal(TEXT, np.arange(1000, 1050))  # what was given is not written to


def test_tokens_are_dropped_with_the_probability_that_was_asked_for() -> None:
    changes = augmentation(token_dropout=0.2)
    kept = [changes.change(TEXT, changes.generator(draw)) for draw in range(DRAWS)]
    assert 1 - np.mean([len(each) for each in kept]) / 50 == pytest.approx(0.2, abs=0.01)
    assert all((np.diff(each.astype(int)) > 0).all() for each in kept)


def test_one_token_is_always_left() -> None:
    for draw in range(50):
        assert len(changed(draw, TEXT[:3], token_dropout=0.99)) >= 1
        assert len(changed(draw, TEXT[:0], token_dropout=0.99, token_swap=0.5, span_masking=0.5)) == 0


def test_neighbours_are_swapped_with_the_probability_that_was_asked_for() -> None:
    changes = augmentation(token_swap=0.2)
    swapped = np.stack([changes.change(TEXT, changes.generator(draw)) for draw in range(DRAWS)])
    assert (np.sort(swapped, 1) == TEXT).all()
    moved = swapped.astype(int) - TEXT
    assert set(np.unique(moved)) == {-1, 0, 1}
    assert (moved[:, 1:-1] != 0).mean(0) == pytest.approx(np.full(48, 0.2), abs=0.05)
    assert (moved[:, 1:-1] != 0).mean() == pytest.approx(0.2, abs=0.01)


def test_spans_are_masked_with_the_probability_that_was_asked_for() -> None:
    changes = augmentation(span_masking=0.2, span_length=4)
    result = np.stack([changes.change(TEXT, changes.generator(draw)) for draw in range(DRAWS)])
    hidden = result == SPECIALS.mask
    assert (result[~hidden] == np.broadcast_to(TEXT, result.shape)[~hidden]).all()
    assert hidden.mean(0) == pytest.approx(np.full(50, 0.2), abs=0.05)
    for row in hidden[:200]:
        bounds = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        inner = [end - begin for begin, end in zip(bounds[::2], bounds[1::2], strict=True) if begin > 0 and end < 50]
        assert all(length % 4 == 0 for length in inner)


def test_a_back_translation_takes_the_place_of_a_share_of_the_texts() -> None:
    options = {"back_translation": 0.3, "back_translations": "file"}
    back = np.array([7, 8], np.uint16)
    changes = augmentation(**options)
    results = [changes.change(TEXT, changes.generator(draw), back) for draw in range(DRAWS)]
    assert np.mean([np.array_equal(each, back) for each in results]) == pytest.approx(0.3, abs=0.03)
    assert all(np.array_equal(each, back) or np.array_equal(each, TEXT) for each in results)
    assert np.array_equal(changed(1, TEXT, back[:0], **options), TEXT)


@pytest.fixture
def replacements(tmp_path: Path) -> str:
    path = tmp_path / "words.tsv"
    path.write_text("alpha\tbeta, gamma delta\nsigma tau\tpi\n")
    return str(path)


def test_words_are_replaced_as_the_file_says(replacements: str) -> None:
    text = np.array(TOKENIZER.encode("alpha mu sigma tau nu sigma alpha"), np.uint16)
    changes = augmentation(replacement=0.4, replacements=replacements)
    results = [TOKENIZER.decode(changes.change(text, changes.generator(draw)).tolist()) for draw in range(DRAWS)]
    words = [each.split() for each in results]
    assert {each[0] for each in words} == {"alpha", "beta", "gamma"}
    assert np.mean([each[0] != "alpha" for each in words]) == pytest.approx(0.4, abs=0.03)
    assert np.mean([each[0] == "beta" for each in words]) == pytest.approx(0.2, abs=0.03)
    assert np.mean(["sigma tau" not in each for each in results]) == pytest.approx(0.4, abs=0.03)
    assert all("mu" in each and "nu sigma" in result for each, result in zip(words, results, strict=True))


def test_replacements_are_of_whole_words(replacements: str) -> None:
    text = np.array(TOKENIZER.encode("alphabet"), np.uint16)
    assert len(text) > 1
    assert np.array_equal(changed(0, text, replacement=0.99, replacements=replacements), text)


@pytest.mark.parametrize("line", ["alpha beta", "\tbeta", "alpha\t , "])
def test_a_damaged_line_of_replacements_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "words.tsv"
    path.write_text(f"sigma\ttau\n{line}\n")
    with pytest.raises(DataError, match=r"words\.tsv:2: got"):
        augmentation(replacement=0.5, replacements=str(path))


def test_a_missing_file_of_replacements_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        augmentation(replacement=0.5, replacements=str(tmp_path / "nothing"))


def test_spans_are_not_masked_without_a_mask_token() -> None:
    config = example_config("classification", "bert", augmentation={"span_masking": 0.1})
    with pytest.raises(ConfigError, match="span_masking: the tokenizer has no mask token"):
        TextAugmentation(config, example_tokenizer("character"))


def test_mixup_shares_follow_their_distribution_and_partners_are_any() -> None:
    changes = augmentation(mixup=0.4)
    partners, shares = changes.mix(np.arange(5000), 10)
    assert np.bincount(partners, minlength=10) == pytest.approx(np.full(10, 500), abs=90)
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)
    again, other = changes.mix(np.arange(3), 10), changes.mix(np.arange(1, 4), 10)
    assert again[1].tolist() == shares[:3].tolist() and again[1].tolist() != other[1].tolist()


def classification_samples(pack: bool, **options: Any) -> ClassificationSamples:
    config = example_config("classification", "bert", pack=pack, augmentation=options)
    texts = example_texts([3, 5, 8, 2, 11, 4, 6, 7])
    table = example_table(text=texts, labels=[[number % 2] for number in range(8)])
    return example_classification(config, table, 2)


@pytest.mark.parametrize("pack", [False, True])
def test_special_tokens_stay_where_they_are(pack: bool) -> None:
    samples = classification_samples(pack, token_dropout=0.3, token_swap=0.3, span_masking=0.3)
    indices = np.arange(samples.num_samples)
    for draw in range(20):
        arrays = samples.gather(indices, indices + 100 * draw)
        for tokens, segments in zip(arrays["inputs"], arrays["segments"], strict=True):
            for number in range(1, segments.max() + 1):
                text = tokens[segments == number].tolist()
                assert (text[0], text[-1]) == (SPECIALS.begin, SPECIALS.separator)
                assert SPECIALS.begin not in text[1:] and SPECIALS.separator not in text[1:-1]


def test_a_sample_is_a_function_of_its_draw_whatever_stands_beside_it() -> None:
    samples = classification_samples(False, token_dropout=0.3, mixup=0.5)
    together = samples.gather(np.array([1, 4, 6]), np.array([11, 12, 13]))
    alone = samples.gather(np.array([4]), np.array([12]))
    assert set(alone) == set(samples.features) >= {"inputs_b", "labels_b", "mix"}
    for name, array in alone.items():
        assert np.array_equal(array[0], together[name][1]), name
        assert array.dtype == samples.features[name].dtype and array.shape[1:] == samples.features[name].shape


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_texts_that_grow_stay_within_their_packed_rows(replacements: str, family: str) -> None:
    Path(replacements).write_text("alpha\talpha beta gamma delta\n")
    options = {"replacement": 0.99, "replacements": replacements}
    config = example_config("translation", family, pack=True, augmentation=options)
    sources = [np.array(TOKENIZER.encode(" ".join(["alpha"] * (1 + number % 4))), np.uint16) for number in range(12)]
    table = example_table(source=sources, target=example_texts([2] * 12))
    packed = packed_rows(config, table)
    samples = example_text_to_text(config, table)
    arrays = samples.gather(np.arange(samples.num_samples), np.arange(samples.num_samples))
    segments = arrays["segments" if family == "gpt" else "source_segments"]
    assert [row.max() for row in segments] == [len(packed.pieces(row)) for row in range(packed.num_rows)]
    targets = arrays["targets"]
    assert (targets >= 0).sum() == 36  # what is to be written is never cut for it
    num_before = sum(map(len, sources)) + 12 * (3 if family == "gpt" else 1)
    assert (segments > 0).sum() > num_before
