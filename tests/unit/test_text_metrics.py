"""Metrics of texts: known values, so that it is seen that texts and references are not mixed up."""

from __future__ import annotations

import math

import pytest

from trainer.tasks.text_metrics import score_texts


def test_equal_texts_have_full_scores() -> None:
    texts = ["the cat sat on the mat today", "a dog ran through the whole park"]
    assert score_texts("translation", texts, texts) == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    assert score_texts("summarization", texts, texts) == pytest.approx({"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0})


def test_bleu_is_that_of_the_corpus_with_its_brevity_penalty() -> None:
    """All n-grams of the texts are right, and 11 of 12 tokens are there: exp(1 - 12/11)."""
    references = ["the cat sat on the mat", "a dog ran through the park"]
    texts = ["the cat sat on the mat", "a dog ran through the"]
    assert score_texts("translation", texts, references)["bleu"] == pytest.approx(100 * math.exp(1 - 12 / 11))


def test_rouge_is_a_mean_of_f1_over_texts() -> None:
    """The first: precision 3/3, recall 3/6, F1 2/3; pairs 2/2 and 2/5, F1 4/7. The second has nothing in common."""
    references = ["the cat sat on the mat", "a dog ran"]
    texts = ["the cat sat", "nothing"]
    scores = score_texts("summarization", texts, references)
    assert scores == pytest.approx({"rouge1": 100 / 3, "rouge2": 100 * 2 / 7, "rougeL": 100 / 3})


def test_words_are_compared_by_their_stems() -> None:
    assert score_texts("summarization", ["dogs running"], ["dog runs"])["rouge1"] == pytest.approx(100.0)
