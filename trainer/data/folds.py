"""Cross-validation: which samples of a data set are in which fold. A function of their numbers, so that nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.config import FoldsConfig
from trainer.data.samples.classification import ClassificationSamples
from trainer.data.samples.question_answering import QuestionSamples
from trainer.data.samples.text_to_text import DecoderSamples, EncoderDecoderSamples
from trainer.data.windows import Int64Array, Samples
from trainer.errors import DataError


def trained_and_held_out(samples: Sequence[Samples], folds: FoldsConfig) -> tuple[list[Int64Array], list[Int64Array]]:
    """The numbers of the samples of each data set that are trained on, and of those that are held out, ascending.

    Raises DataError where a data set has less than one sample for each fold.
    """
    trained, held_out = [], []
    for number, each in enumerate(samples):
        fold_of = fold_numbers(each, folds, stream=number)
        num_filled = len(np.unique(fold_of))
        if num_filled < folds.number:
            raise DataError(
                f"data.folds.number: got {folds.number}, and the samples of data.train.{number} fill {num_filled}; "
                "take fewer folds, or give more data"
            )
        trained.append(np.flatnonzero(fold_of != folds.held_out))
        held_out.append(np.flatnonzero(fold_of == folds.held_out))
    return trained, held_out


def fold_numbers(samples: Samples, folds: FoldsConfig, stream: int = 0) -> Int64Array:
    """The fold of each sample of a data set, the `stream`-th [num_samples].

    Samples are dealt out in an order that `seed` and `stream` draw, one to each fold in turn: so folds differ by at most one
    sample. In classification each class is dealt out by itself, and folds have their share of each (stratified; Kohavi 1995);
    rows that hold several texts are dealt out as they are. In question answering contexts are dealt out, each with all of its
    questions and windows. Where records have groups, groups are dealt out, by the class that most of their samples have: folds
    then differ by as much as groups do.
    """
    if isinstance(samples, QuestionSamples):
        contexts = samples.contexts()
        return _dealt(np.zeros(int(contexts.max(initial=-1)) + 1, np.int64), folds, stream)[contexts]
    classes = samples.classes() if isinstance(samples, ClassificationSamples) else None
    if classes is None:
        classes = np.zeros(samples.num_samples, np.int64)
    groups = samples.groups() if isinstance(samples, ClassificationSamples | EncoderDecoderSamples | DecoderSamples) else None
    if groups is None:
        return _dealt(classes, folds, stream)
    _, group_of = np.unique(groups, return_inverse=True)
    return _dealt(_most_frequent(classes, group_of), folds, stream)[group_of]


def _most_frequent(classes: Int64Array, group_of: Int64Array) -> Int64Array:
    """Of each group the class that most of its samples have, of several the first."""
    pairs, counts = np.unique(np.stack([group_of, classes]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    groups, first = np.unique(pairs[0][order], return_index=True)
    assert len(groups) == group_of.max(initial=-1) + 1
    return pairs[1][order][first]


def _dealt(classes: Int64Array, folds: FoldsConfig, stream: int) -> Int64Array:
    """The fold of each of the things of these classes. A class begins where the one before it ended: all folds together differ
    by one, too."""
    generator = np.random.Philox(key=np.array([folds.seed, stream], np.uint64))
    drawn = generator.random_raw(len(classes))
    result = np.empty(len(classes), np.int64)
    result[np.lexsort((drawn, classes))] = np.arange(len(classes)) % folds.number
    return result
