"""The columns of a store of records hold what its inputs say: texts, classes, answers, back-translations."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.data_corpora import BPE, WORD, WORDPIECE, classification, data_config, films, translation, write_jsonl
from trainer.data.manifest import read_manifest, read_manifest_of
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError


def test_classification_has_texts_and_numbers_of_classes(tmp_path: Path) -> None:
    train, validation = films(tmp_path)
    prepare(classification(tmp_path / "store", train, validation))
    manifest = read_manifest(tmp_path / "store")
    assert manifest.labels == ("bad", "fair", "good")
    assert manifest.sizes.num_labels == 3
    assert (manifest.num_documents("train"), manifest.num_documents("validation")) == (60, 6)
    (table,) = TokenStore(tmp_path / "store", "train", verify=True).tables
    tokenizer = Tokenizer.load(tmp_path / "store/tokenizer.json")
    assert table.num_records == 60
    assert [table.has(column) for column in ("text", "labels", "text_b", "back_translation")] == [True, True, False, False]
    assert tokenizer.decode(table.tokens("text", 2).tolist()) == "film 2 is very very fair"
    assert table.tokens("text", 2).dtype == np.uint16
    assert table.lengths("text").tolist() == [len(table.tokens("text", number)) for number in range(60)]
    assert [table.integers("labels", number).tolist() for number in range(4)] == [[2], [0], [1], [2]]


def test_labels_that_are_whole_numbers_go_by_number_and_others_by_the_alphabet(tmp_path: Path) -> None:
    for name, labels, expected in (
        ("numbers", (10, 9, -1), ("-1", "9", "10")),
        ("mixed", (10, 9, "x"), ("10", "9", "x")),
    ):
        train, _ = films(tmp_path, labels=labels)
        prepare(classification(tmp_path / name, train))
        assert read_manifest(tmp_path / name).labels == expected


def test_given_labels_keep_their_order_and_others_are_named(tmp_path: Path) -> None:
    train, validation = films(tmp_path)
    config = classification(tmp_path / "store", train, validation, labels=["good", "fair", "unused", "bad"])
    prepare(config)
    assert read_manifest_of(config).labels == ("good", "fair", "unused", "bad")
    (table,) = TokenStore(tmp_path / "store", "train").tables
    assert table.integers("labels", 0).tolist() == [0]
    with pytest.raises(DataError, match=r"train\.jsonl:3: label 'fair' is not among data\.labels: good, bad"):
        prepare(classification(tmp_path / "other", train, labels=["good", "bad"]))
    assert not (tmp_path / "other").exists()


def test_labels_of_the_validation_alone_are_named(tmp_path: Path) -> None:
    train, _ = films(tmp_path)
    validation = write_jsonl(tmp_path / "other.jsonl", [{"text": "a", "label": "bad"}, {"text": "b", "label": "odd"}])
    with pytest.raises(DataError, match=r"other\.jsonl:2: label 'odd' is not among those of the training data: bad, fair"):
        prepare(classification(tmp_path / "store", train, validation))
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a", "label": "bad"}])
    with pytest.raises(DataError, match="all texts have the label 'bad'"):
        prepare(classification(tmp_path / "store", one))


def test_texts_may_have_several_labels_or_none(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": labels} for labels in (["b", "a"], [], ["c", "b"])]
    prepare(classification(tmp_path / "store", write_jsonl(tmp_path / "a.jsonl", rows), multi_label=True))
    (table,) = TokenStore(tmp_path / "store", "train").tables
    assert [table.integers("labels", number).tolist() for number in range(3)] == [[0, 1], [], [1, 2]]


def test_two_texts_and_their_fields(tmp_path: Path) -> None:
    rows = [{"premise": f"a {number}", "claim": f"b {number}", "label": number % 2} for number in range(4)]
    fields = {"text": "premise", "text_b": "claim"}
    train = write_jsonl(tmp_path / "a.jsonl", rows)
    prepare(classification(tmp_path / "store", train, fields=fields, tokenizer=WORD))
    (table,) = TokenStore(tmp_path / "store", "train").tables
    tokenizer = Tokenizer.load(tmp_path / "store/tokenizer.json")
    assert tokenizer.decode(table.tokens("text_b", 3).tolist()) == "b 3"  # so the tokenizer knows words of both
    assert table.has("text_b")


def test_translation_has_both_texts_and_for_validation_the_target_as_it_is(tmp_path: Path) -> None:
    for name, line in (("en", "a dog"), ("de", "ein Hund")):
        (tmp_path / name).write_text(f"{line}\n\n{line} 2\n" * 50)
    source = {"path": str(tmp_path / "en"), "target_path": str(tmp_path / "de")}
    config = translation(tmp_path / "store", source, source, file_format="lines")
    prepare(config)
    tokenizer = Tokenizer.load(tmp_path / "store/tokenizer.json")
    for split, text in (("train", ""), ("validation", "ein Hund 2")):
        (table,) = TokenStore(tmp_path / "store", split).tables  # type: ignore[arg-type]
        assert table.num_records == 100  # those without text are left out
        assert tokenizer.decode(table.tokens("source", 1).tolist()) == "a dog 2"
        assert tokenizer.decode(table.tokens("target", 1).tolist()) == "ein Hund 2"
        assert table.text("target_text", 1) == text
    inputs = read_manifest(tmp_path / "store").train[0].inputs
    assert [Path(each.path).name for each in inputs] == ["en", "de"]


def test_questions_have_answers_in_tokens_and_offsets_in_characters(tmp_path: Path) -> None:
    context = "Ünder the bridge flows the Seine, 🥁 in Paris."
    answers = [{"text": "the Seine", "answer_start": context.index("the Seine")}, {"text": "Seine", "answer_start": 27}]
    questions = [
        {"question": "What flows?", "id": "q1", "answers": answers},
        {"question": "Why?", "id": "q2", "answers": [], "is_impossible": True},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}))
    for number, kind in enumerate((WORDPIECE, BPE)):
        store = tmp_path / f"store-{number}"
        options = {"window_overlap": 4}
        train = [{"path": str(path)}]
        config = data_config(
            store,
            train,
            file_format="squad",
            tokenizer=kind,
            task="question_answering",
            family="bert",
            options=options,
        )
        prepare(config)
        (table,) = TokenStore(store, "train").tables
        offsets = table.integers("context_offsets", 0).reshape(-1, 2)
        assert len(offsets) == len(table.tokens("context", 0))
        first, last = table.integers("answer", 0).tolist()
        assert context[offsets[first, 0] : offsets[last, 1]] == "the Seine"
        assert table.integers("answer", 1).tolist() == []
        assert table.text("context_text", 1) == context
        assert [table.text("question_id", 0), table.text("answers", 0)] == ["q1", '["the Seine", "Seine"]']
        assert table.text("answers", 1) == "[]"


def test_back_translations_go_with_their_training_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, validation = films(tmp_path)
    file = tmp_path / "back.tsv"
    file.write_text("film 0 is good\tmovie 0 is fine\nno such text\tx\nfilm 0 is good\tanother\n")
    augmentation = {"back_translation": 0.5, "back_translations": str(file)}
    config = classification(tmp_path / "store", train, validation, augmentation=augmentation)
    caplog.set_level(logging.INFO)
    prepare(config)
    assert "has back-translations of 1 of 60 training texts" in caplog.text
    (table,) = TokenStore(tmp_path / "store", "train").tables
    tokenizer = Tokenizer.load(tmp_path / "store/tokenizer.json")
    assert table.lengths("back_translation").tolist().count(0) == 59
    expected = tokenizer.encode("movie 0 is fine")
    assert table.tokens("back_translation", 0).tolist() == expected
    assert not TokenStore(tmp_path / "store", "validation").tables[0].has("back_translation")
    file.write_text("film 1 is very bad\tmovie 1 is awful\n")
    prepare(config)  # another file makes other parts
    (table,) = TokenStore(tmp_path / "store", "train").tables
    assert table.lengths("back_translation")[:2].tolist() == [0, len(tokenizer.encode("movie 1 is awful"))]
    file.write_text("no such text\tx\n")
    with pytest.raises(DataError, match=r"back\.tsv has none of the training texts"):
        prepare(config)
    file.write_text("film 0 is good\n")
    with pytest.raises(DataError, match=r"back\.tsv:1: got 'film 0 is good', expected a text, a tab"):
        prepare(config)
    file.unlink()
    with pytest.raises(DataError, match=r"data\.augmentation\.back_translations: .* cannot be read"):
        prepare(config)


def test_answers_in_the_nested_columns_of_parquet(tmp_path: Path) -> None:
    rows = [
        {"context": f"Here is number {n}.", "question": "Which?", "answers": {"text": [str(n)], "answer_start": [15]}}
        for n in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    options = {"window_overlap": 4}
    config = data_config(
        tmp_path / "store",
        [{"path": str(tmp_path / "a.parquet")}],
        file_format="parquet",
        tokenizer=WORD,
        task="question_answering",
        family="bert",
        options=options,
    )
    prepare(config)
    (table,) = TokenStore(tmp_path / "store", "train").tables
    assert [table.integers("answer", number).tolist() for number in range(5)] == [[3, 3]] * 5
    before = read_manifest(tmp_path / "store").train[0].inputs
    rows[0]["answers"] = {"text": ["Here"], "answer_start": [0]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    prepare(config)  # the hash is of all columns that are read
    assert read_manifest(tmp_path / "store").train[0].inputs != before
    assert TokenStore(tmp_path / "store", "train").tables[0].integers("answer", 0).tolist() == [0, 0]
