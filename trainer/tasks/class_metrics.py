"""How well classes are told apart: accuracy, macro F1, area under the curve. No TensorFlow.

N: texts, C: classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.windows import Int32Array

Scores = npt.NDArray[np.floating[Any]]

THRESHOLD = 0.5  # from here on a text counts as having a class, where it may have several


def class_metrics(scores: Scores, labels: Int32Array) -> dict[str, float]:
    """Of the probabilities `scores` [N, C] and the right classes: numbers [N], or where a text may have several 0 and 1 [N, C].

    `accuracy` is the share of texts of which all is right: the likeliest class, or the whole set of those with a
    probability of a half and more.
    """
    num_classes = scores.shape[1]
    if labels.ndim == 1:
        is_right = labels[:, None] == np.arange(num_classes)
        is_chosen = scores.argmax(1)[:, None] == np.arange(num_classes)
        # Classes that neither occur nor are chosen say nothing of a text that has one class.
        counted = is_right.any(0) | is_chosen.any(0)
    else:
        is_right, is_chosen = labels == 1, scores >= THRESHOLD
        counted = np.ones(num_classes, np.bool_)
    return {
        "accuracy": float((is_right == is_chosen).all(1).mean()) if len(scores) else 0.0,
        "macro_f1": macro_f1(is_chosen[:, counted], is_right[:, counted]),
        "auc": macro_auc(scores, is_right),
    }


def macro_f1(is_chosen: npt.NDArray[np.bool_], is_right: npt.NDArray[np.bool_]) -> float:
    """The mean over the classes of 2 TP / (2 TP + FP + FN), 0 where that is 0 / 0; both [N, C]."""
    if not is_right.shape[1]:
        return 0.0
    hits = (is_chosen & is_right).sum(0)
    all_ = is_chosen.sum(0) + is_right.sum(0)
    return float(np.where(all_ > 0, 2 * hits / np.maximum(all_, 1), 0.0).mean())


def macro_auc(scores: Scores, is_right: npt.NDArray[np.bool_]) -> float:
    """The mean over the classes of the area under the curve of one against the rest; both [N, C].

    Classes that all texts have, or none, have no such area and are left out; where no class has one it is 0.5, that of scores
    which say nothing.
    """
    num_right = is_right.sum(0)
    classes = np.flatnonzero((num_right > 0) & (num_right < len(is_right)))
    return float(np.mean([auc(scores[:, each], is_right[:, each]) for each in classes])) if len(classes) else 0.5


def auc(scores: Scores, is_positive: npt.NDArray[np.bool_]) -> float:
    """The share of pairs of a positive and a negative of which the positive has the higher score, ties counting half: the
    rank statistic of Mann and Whitney (1947), which is the area under the curve (Hanley and McNeil 1982). All [N]."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Ranks from 1; those that tie share the mean of theirs.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    num_positive = int(is_positive.sum())
    num_negative = len(scores) - num_positive
    wins = ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))
