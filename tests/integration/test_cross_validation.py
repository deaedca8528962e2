"""A run with folds: trained on all but one, evaluated on that one, provably; another fold is another run."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.integration.test_tasks import BAD, GOOD, task_config, write_records
from tests.training import json_lines, run_path
from trainer.config import Config
from trainer.errors import CheckpointError, UserError

NUM_FOLDS, STEPS, BATCH = 5, 12, 4
BAG = {"family": "bag_of_embeddings", "width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tensorflow: ModuleType) -> Path:
    """A store of thirty records of two classes."""
    from trainer.data.prepare import prepare

    path = tmp_path_factory.mktemp("folds")
    texts = [
        (f"{text} {number}", label) for number in range(3) for label, each in (("good", GOOD), ("bad", BAD)) for text in each
    ]
    write_records(path / "records.jsonl", [{"text": text, "label": label} for text, label in texts])
    prepare(config(path, 0), num_processes=1)
    return path


def config(folder: Path, held_out: int, **data: Any) -> Config:
    settings = task_config(
        folder, "classification", BAG, STEPS, batch=BATCH, folds={"number": NUM_FOLDS, "held_out": held_out}, **data
    )
    return settings.model_copy(update={"run": settings.run.model_copy(update={"name": f"fold-{held_out}"})})


def test_a_run_is_evaluated_on_its_fold_and_never_trained_on_it(folder: Path) -> None:
    from trainer.data.corpus import open_corpus
    from trainer.evaluate import evaluate_run
    from trainer.loop import train
    from trainer.verify import verify_run

    held_out_of_any = []
    for held_out in range(2):
        settings = config(folder, held_out)
        train(settings)
        run = run_path(settings)
        corpus = open_corpus(settings)
        assert corpus.validation.chosen is not None
        (held,) = corpus.validation.chosen
        # The ledger has the ids that were read off the batches: `verify` holds them against this order.
        verify_run(run)
        consumed = corpus.order.sample_ids(0, STEPS * BATCH)
        assert not set(consumed.tolist()) & set(held.tolist())
        assert len(set(consumed.tolist())) == 30 - len(held) == 24
        (validation,) = [line for line in json_lines(run / "metrics.jsonl") if line["split"] == "validation"]
        assert validation["num_samples"] == len(held) == 6
        evaluated = evaluate_run(run)
        assert evaluated["loss"] == pytest.approx(validation["loss"], rel=1e-6)
        held_out_of_any.append(held)
    assert not set(held_out_of_any[0].tolist()) & set(held_out_of_any[1].tolist())


def test_a_run_does_not_go_on_with_another_fold(folder: Path) -> None:
    from trainer.loop import train

    settings = config(folder, 2)
    train(settings)
    other = settings.model_copy(update={"data": config(folder, 3).data})
    with pytest.raises(CheckpointError, match=r'data\.folds was \{"number": 5, "held_out": 2'):
        train(other)


def test_check_tells_the_fold_and_counts_epochs_without_it(folder: Path) -> None:
    from trainer.check import report

    told = report(config(folder, 2), 1)
    assert "30 samples" in told and "but for fold 2 of 5, counted from 0, which is evaluated" in told
    assert "epochs       2.00 in the run; one takes 6.0 steps" in told


def test_what_is_evaluated_comes_without_augmentation(folder: Path) -> None:
    from trainer.data.corpus import open_corpus

    corpus = open_corpus(config(folder, 0, augmentation={"token_dropout": 0.5}))
    assert corpus.validation.chosen is not None
    (held,) = corpus.validation.chosen
    first, second = (np.full(len(held), draw) + held for draw in (0, 1000))
    evaluated, trained = corpus.validation.samples[0], corpus.train[0]
    np.testing.assert_array_equal(evaluated.gather(held, first)["inputs"], evaluated.gather(held, second)["inputs"])
    assert (trained.gather(held, first)["inputs"] != trained.gather(held, second)["inputs"]).any()


def test_no_texts_are_written_of_a_fold(folder: Path) -> None:
    from trainer.evaluate import evaluate_run

    with pytest.raises(UserError, match="a fold that is held out has no metric of texts"):
        evaluate_run(run_path(config(folder, 0)), num_texts=3)
