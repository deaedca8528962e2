"""Folds: every sample is in one of them, classes and contexts are where they belong, and an order of some samples is one of all
that are meant."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import ROOT
from tests.unit.data_corpora import classification, translation, write_jsonl
from tests.unit.task_examples import (
    example_classification,
    example_config,
    example_table,
    example_texts,
    example_tokenizer,
)
from trainer.config import FoldsConfig
from trainer.config_io import load_config
from trainer.data.folds import fold_numbers, trained_and_held_out
from trainer.data.prepare import prepare
from trainer.data.samples.classification import ClassificationSamples
from trainer.data.samples.question_answering import QuestionSamples
from trainer.data.store import open_samples
from trainer.errors import ConfigError, DataError


class Numbered:
    """Samples of which there is nothing to know but how many there are."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples


def folds(number: int, held_out: int = 0, seed: int = 1) -> FoldsConfig:
    return FoldsConfig(number=number, held_out=held_out, seed=seed)


def sizes(fold_of: np.ndarray, number: int) -> list[int]:
    return np.bincount(fold_of, minlength=number).tolist()


@pytest.mark.parametrize(("num_samples", "number"), [(2, 2), (17, 5), (1000, 7)])
def test_each_sample_is_held_out_once(num_samples: int, number: int) -> None:
    samples = Numbered(num_samples)
    seen = []
    for held_out in range(number):
        (trained,), (held,) = trained_and_held_out([samples], folds(number, held_out))
        assert np.array_equal(np.sort(np.concatenate([trained, held])), np.arange(num_samples))
        seen.append(held)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(num_samples))
    lengths = [len(held) for held in seen]
    assert max(lengths) - min(lengths) <= 1


def test_folds_are_as_the_seed_draws_them() -> None:
    first, again, other = (fold_numbers(Numbered(200), folds(4, held, seed)) for held, seed in ((0, 1), (3, 1), (0, 2)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, fold_numbers(Numbered(200), folds(4), stream=1))
    # Neighbours are not in turn in one fold after another.
    assert not np.array_equal(first, np.arange(200) % 4)


def test_folds_of_classes_have_their_share_of_each() -> None:
    labels = np.random.default_rng(0).choice(3, 100, p=[0.7, 0.25, 0.05])
    table = example_table(text=example_texts([2] * 100), labels=[[int(label)] for label in labels])
    samples = example_classification(example_config("classification", "bag_of_embeddings"), table, 3)
    fold_of = fold_numbers(samples, folds(5))
    assert max(sizes(fold_of, 5)) - min(sizes(fold_of, 5)) <= 1
    for label in range(3):
        of_class = sizes(fold_of[labels == label], 5)
        assert max(of_class) - min(of_class) <= 1


def test_texts_with_several_classes_or_none_go_by_the_first() -> None:
    labels = [[], [0], [0, 2], [2]] * 6
    table = example_table(text=example_texts([2] * 24), labels=labels)
    assert table.firsts("labels").tolist() == [-1, 0, 0, 2] * 6
    config = example_config("classification", "bag_of_embeddings", multi_label=True)
    fold_of = fold_numbers(example_classification(config, table, 3), folds(3))
    for which in (slice(0, None, 4), slice(3, None, 4)):
        assert sizes(fold_of[which], 3) == [2, 2, 2]


def test_rows_of_several_texts_are_dealt_out_as_they_are() -> None:
    config = example_config("classification", "bert", pack=True)
    table = example_table(text=example_texts([5] * 30), labels=[[n % 2] for n in range(30)])
    samples = example_classification(config, table, 2)
    assert 3 < samples.num_samples < 30
    fold_of = fold_numbers(samples, folds(3))
    assert max(sizes(fold_of, 3)) - min(sizes(fold_of, 3)) <= 1
    assert len(fold_of) == samples.num_samples


def test_questions_to_one_context_and_its_windows_are_in_one_fold() -> None:
    contexts = [number // 3 for number in range(30)]  # three questions to each of ten
    texts = example_texts([40] * 10)
    table = example_table(
        context=[texts[number] for number in contexts],
        question=example_texts([3] * 30, seed=1),
        context_offsets=[[0, 1] * 40] * 30,
        answer=[[]] * 30,
        context_text=[f"context {number}" for number in contexts],
        question_id=[str(number) for number in range(30)],
        answers=["[]"] * 30,
    )
    samples = QuestionSamples(example_config("question_answering", "bert", window_overlap=4), table, example_tokenizer())
    assert samples.num_samples > 60
    fold_of = fold_numbers(samples, folds(5))
    of_context = np.array(contexts)[samples.record_of(np.arange(samples.num_samples))]
    folds_of_contexts = [set(fold_of[of_context == context].tolist()) for context in range(10)]
    assert all(len(found) == 1 for found in folds_of_contexts)
    assert sorted(itertools.chain(*folds_of_contexts)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_more_folds_than_samples_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.folds\.number: got 5, and the samples of data\.train\.1 fill 3; take fewer"):
        trained_and_held_out([Numbered(9), Numbered(3)], folds(5))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["data.folds={number: 5, held_out: 5}"], "data.folds.held_out: got 5, expected less than `number`, which is 5"),
        (["data.folds={number: 1, held_out: 0}"], "data.folds.number: got 1, expected at least 2"),
        (["data.folds={number: 5}"], "data.folds.held_out: missing"),
    ],
)
def test_settings_that_make_no_sense(small_config: Path, overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(small_config, overrides)
    assert complaint in str(caught.value)


def test_what_needs_more_than_the_folds_have_is_refused() -> None:
    both: dict[str, Any] = {"folds": {"number": 3, "held_out": 0}, "augmentation": {"mixup": 0.2}}
    with pytest.raises(ValueError, match="a sample could be mixed with one that is held out"):
        example_config("classification", "bag_of_embeddings", **both)
    with pytest.raises(ConfigError, match=r"evaluation\.generate.* expected 0 with data\.folds"):
        load_config(ROOT / "configs/translation.yaml", ["data.folds={number: 3, held_out: 0}", "evaluation.generate=5"])


@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_an_order_of_some_samples_goes_through_these_alone(weights: list[float] | None) -> None:
    from trainer.data.order import SampleOrder

    numbers = [Numbered(40), Numbered(11)]
    trained, held_out = trained_and_held_out(numbers, folds(4, 2))
    order = SampleOrder([40, 11], weights, 7, trained)
    assert order.num_samples == sum(map(len, trained)) == 51 - sum(map(len, held_out))
    datasets, within = order.locate(order.sample_ids(0, 3000))
    for number, chosen in enumerate(trained):
        visits = within[datasets == number]
        if weights is not None:
            for begin in range(0, len(visits) - len(chosen) + 1, len(chosen)):
                assert np.array_equal(np.sort(visits[begin : begin + len(chosen)]), chosen)
        assert set(visits.tolist()) == set(chosen.tolist())
    if weights is None:
        ids = order.sample_ids(order.num_samples, order.num_samples)
        assert np.array_equal(np.sort(ids), np.concatenate([trained[0], 40 + trained[1]]))
    everything = SampleOrder([40, 11], weights, 7, [np.arange(40), np.arange(11)])
    assert np.array_equal(everything.sample_ids(0, 500), SampleOrder([40, 11], weights, 7).sample_ids(0, 500))


def grouped(groups: list[int], labels: list[int]) -> ClassificationSamples:
    table = example_table(
        text=example_texts([2] * len(groups)), labels=[[label] for label in labels], group=[[group] for group in groups]
    )
    return example_classification(example_config("classification", "bag_of_embeddings"), table, 2)


def test_groups_are_held_out_whole_with_each_class_in_every_fold() -> None:
    draw = np.random.default_rng(0)
    label_of = draw.choice(2, 60, p=[0.8, 0.2])
    groups = draw.choice(60, 900)
    # One in ten has another label than its group.
    labels = np.where(draw.random(900) < 0.1, 1 - label_of[groups], label_of[groups])
    fold_of = fold_numbers(grouped(groups.tolist(), labels.tolist()), folds(4))
    for group in range(60):
        assert len(set(fold_of[groups == group].tolist())) <= 1
    assert set(fold_of.tolist()) == {0, 1, 2, 3}
    for label in range(2):
        of_class = [len(set(groups[(fold_of == fold) & (label_of[groups] == label)].tolist())) for fold in range(4)]
        assert max(of_class) - min(of_class) <= 1


def test_a_group_counts_as_what_most_of_it_is() -> None:
    # Two groups of each class by their majority: each fold has one of both.
    samples = grouped([0, 0, 0, 1, 1, 1, 2, 2, 2, 3], [0, 0, 1, 0, 1, 0, 1, 1, 0, 1])
    fold_of = fold_numbers(samples, folds(2))
    assert fold_of[0] != fold_of[3]
    assert fold_of[6] != fold_of[9]


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.folds\.number: got 3, and the samples of data\.train\.0 fill 2"):
        trained_and_held_out([grouped([5, 5, 9, 9], [0, 1, 0, 1])], folds(3))


@pytest.mark.parametrize("task", ["classification", "translation"])
def test_prepare_keeps_the_groups(task: str, tmp_path: Path) -> None:
    names = ["ann", "ben", "ann", "cleo", 7, "ben"]
    rows = [
        {"text": f"text {number}", "label": number % 2, "source": f"text {number}", "target": "t", "who": who}
        for number, who in enumerate(names)
    ]
    options = {"fields": {"group": "who"}, "pack": False}
    make = classification if task == "classification" else translation
    config = make(tmp_path / "store", write_jsonl(tmp_path / "a.jsonl", rows), **options)
    prepare(config, num_processes=1)
    (samples,) = open_samples(config, "train")
    fold_of = fold_numbers(samples, folds(2)).tolist()
    assert fold_of[0] == fold_of[2] and fold_of[1] == fold_of[5]
    groups = samples.groups()  # type: ignore[attr-defined]
    assert groups is not None and len(set(groups.tolist())) == 4


@pytest.mark.parametrize(
    ("change", "complaint"), [({"pack": True}, "got pack true"), ({"file_format": "lines"}, "got data.format lines")]
)
def test_groups_need_records_with_fields_in_rows_of_their_own(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    options = {"fields": {"group": "who"}, "pack": False} | change
    source = {"path": "a", "target_path": "b"} if "file_format" in change else {"path": "a"}
    with pytest.raises(ValueError, match=complaint):
        translation(tmp_path / "store", source, **options)
