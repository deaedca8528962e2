"""Metrics of classes and answers, held against figures computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.tasks.answer_metrics import Prediction, answer_metrics, f1, normalized
from trainer.tasks.class_metrics import auc, class_metrics, macro_auc

SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], np.float32)
LABELS = np.array([0, 1, 2, 1, 0], np.int32)


def auc_by_pairs(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """What the area under the curve is by definition."""
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[is_positive] for b in scores[~is_positive]]
    return float(np.mean(pairs))


def test_classes_against_figures_by_hand() -> None:
    metrics = class_metrics(SCORES, LABELS)
    # Chosen: 0, 1, 0, 1, 2.
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    # Class 0: 0.7 beats three, 0.3 beats two of 0.1 0.4 0.2; class 1: both beat all; class 2: 0.3 beats two and ties with one.
    assert metrics["auc"] == pytest.approx((5 / 6 + 1 + 2.5 / 4) / 3)


def test_a_class_that_neither_occurs_nor_is_chosen_says_nothing() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], np.float32)
    assert class_metrics(scores, np.array([0, 1], np.int32)) == {"accuracy": 1.0, "macro_f1": 1.0, "auc": 1.0}


def test_several_labels_are_right_only_together() -> None:
    scores = np.array([[0.9, 0.4, 0.5], [0.6, 0.7, 0.1], [0.2, 0.1, 0.4]], np.float32)
    labels = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]], np.int32)
    metrics = class_metrics(scores, labels)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    # Nobody has class 1, which was chosen once: 0.
    assert metrics["macro_f1"] == pytest.approx((1 + 0 + 1) / 3)
    assert metrics["auc"] == pytest.approx(1.0)


@pytest.mark.parametrize("num_values", [3, 1000])
def test_the_area_is_the_share_of_pairs_in_order(num_values: int) -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        scores = generator.integers(num_values, size=40) / num_values
        is_positive = generator.random(40) < 0.3
        assert auc(scores, is_positive) == pytest.approx(auc_by_pairs(scores, is_positive))


def test_without_both_kinds_there_is_no_area() -> None:
    assert macro_auc(np.array([[0.2, 0.8], [0.3, 0.7]]), np.array([[False, True], [False, True]])) == 0.5


def test_answers_are_compared_as_squad_does() -> None:
    assert normalized("The  Cat's, (a) Hat!") == "cats hat"
    assert f1("the black cat", "a black dog") == pytest.approx(1 / 2)
    assert f1("the", "an") == 1.0
    assert f1("cat", "") == 0.0
    assert f1("cat cat dog", "cat bird") == pytest.approx(2 * 1 / 5)


def test_the_best_of_several_answers_counts() -> None:
    predictions = [
        Prediction("the cat", is_none_likelier=False, answers=["dog", "Cat."]),
        Prediction("black cat", is_none_likelier=True, answers=["white cat", "bird"]),
    ]
    assert answer_metrics(predictions) == {"exact_match": 50.0, "f1": pytest.approx(75.0)}


def test_only_where_some_have_no_answer_may_one_be_left_out() -> None:
    predictions = [
        Prediction("cat", is_none_likelier=True, answers=["cat"]),
        Prediction("dog", is_none_likelier=True, answers=[]),
        Prediction("bird", is_none_likelier=False, answers=[]),
        Prediction("fish", is_none_likelier=False, answers=["fish"]),
    ]
    assert answer_metrics(predictions) == {"exact_match": 50.0, "f1": 50.0}
    assert answer_metrics([predictions[0], predictions[3]]) == {"exact_match": 100.0, "f1": 100.0}


def test_nothing_is_not_right() -> None:
    assert answer_metrics([]) == {"exact_match": 0.0, "f1": 0.0}
