"""Stores of records are the same however they were made, and packed rows hold each record once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_corpora import (
    BPE,
    WORD,
    WORDPIECE,
    classification,
    data_config,
    films,
    pairs,
    store_contents,
    translation,
    write_jsonl,
)
from trainer.config import Config
from trainer.data import parts, sources
from trainer.data.manifest import read_manifest, read_manifest_of, store_settings
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError

SHARED = Path("/work/shared/data")
needs_shared_data = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")


@pytest.mark.parametrize("family", ["t5", "gpt"])
def test_best_fit_writes_rows_that_hold_every_record_once(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = translation(tmp_path / "store", pairs(tmp_path), family=family)
    prepare(config)
    dataset = read_manifest_of(config).train[0]
    assert dataset.rows is not None and dataset.rows.num_pieces == 100
    store = TokenStore(tmp_path / "store", "train", verify=True)
    (rows,) = store.rows
    pieces = [rows.pieces(row).tolist() for row in range(rows.num_rows)]
    assert sorted(number for row in pieces for number in row) == list(range(100))
    assert rows.max_pieces == max(map(len, pieces)) > 1
    assert rows.num_places == rows.num_rows * (48 if family == "t5" else 24)
    lengths = store.tables[0].lengths("target") + 1
    assert all(lengths[row].sum() <= 24 for row in pieces)
    share = 100 * rows.num_real_tokens / rows.num_places
    assert f"store: train: 100 samples in {rows.num_rows} rows, {share:.1f}% real tokens" in caplog.text


def test_rows_are_made_again_where_anything_they_follow_from_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, source = tmp_path / "store", pairs(tmp_path)
    prepare(translation(store, source))
    longer = translation(store, source, sequence_length=48)
    with pytest.raises(DataError, match=r"was prepared with data\.pack .*\"sequence_length\": 24.*, and it is now .*48"):
        read_manifest_of(longer)
    arrow = store / "train/0/part-00000.arrow"
    before = arrow.stat().st_mtime_ns
    prepare(longer)
    assert arrow.stat().st_mtime_ns == before
    assert TokenStore(store, "train").rows[0].num_rows < 34
    (store / "train/0/rows.arrow").unlink()
    with pytest.raises(DataError, match=r"rows\.arrow: no such file"):
        _ = TokenStore(store, "train").rows
    prepare(longer)
    caplog.set_level(logging.INFO)
    prepare(longer)
    assert caplog.messages[-1].endswith("nothing to do")
    prepare(translation(store, source, pack=False))
    assert not (store / "train/0/rows.arrow").exists()
    with pytest.raises(DataError, match="was prepared without rows"):
        _ = TokenStore(store, "train").rows


def test_lengths_that_do_not_suit_the_texts_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    prepare(translation(tmp_path / "store", pairs(tmp_path), sequence_length=32, target_length=96))
    told = next(message for message in caplog.messages if "of the sources' places" in message)
    better = int(told.split("data.target_length ")[1].split()[0])
    assert 24 < better < 64
    caplog.clear()
    prepare(translation(tmp_path / "store", pairs(tmp_path), sequence_length=32, target_length=better))
    assert "of the sources' places" not in caplog.text


def test_documents_are_packed_too(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "word " * (number % 9 + 1)} for number in range(50)])
    options = {"pack": "best_fit"}
    prepare(data_config(tmp_path / "store", [train], file_format="jsonl", tokenizer=BPE, options=options))
    store = TokenStore(tmp_path / "store", "train")
    assert store.rows[0].num_rows < 50
    assert store.streams[0].num_tokens == read_manifest(tmp_path / "store").num_tokens("train")


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sources, "UNIT_BYTES", 1000)
    monkeypatch.setattr(parts, "BATCH_TOKENS", 100)
    monkeypatch.setattr(parts, "CALL_CHARACTERS", 300)
    yield


def test_record_batches_and_parts_are_one_table(tmp_path: Path, small_units: None) -> None:
    train, _ = films(tmp_path, num_train=200)
    config = classification(tmp_path / "store", train)
    prepare(config)
    assert len(read_manifest(tmp_path / "store").train[0].parts) > 5
    (table,) = TokenStore(tmp_path / "store", "train", verify=True).tables
    tokenizer = Tokenizer.load(tmp_path / "store/tokenizer.json")
    assert table.num_records == 200
    for number in (0, 57, 123, 199):
        assert tokenizer.decode(table.tokens("text", number).tolist()).startswith(f"film {number} is")
        assert table.integers("labels", number).tolist() == [[2], [0], [1]][number % 3]
    with pytest.raises(AssertionError):
        table.tokens("text", 200)


@pytest.mark.parametrize("task", ["classification", "translation"])
def test_shards_and_merge_make_the_same_store(tmp_path: Path, small_units: None, task: str) -> None:
    def config(name: str) -> Config:
        if task == "translation":
            return translation(tmp_path / name, pairs(tmp_path))
        train, validation = films(tmp_path, num_train=120)
        # The label of the last record is in no other shard.
        with Path(train["path"]).open("a") as file:
            file.write('{"text": "rare", "label": "a rare one"}\n')
        return classification(tmp_path / name, train, validation, pack="best_fit")

    prepare(config("whole"))
    for number in (3, 1):
        prepare(config("sharded"), shard=(number, 3), merge=True)
    with pytest.raises(DataError, match="parts are missing"):
        prepare(config("sharded"), merge=True)
    prepare(config("sharded"), shard=(2, 3), merge=True)
    whole, sharded = store_contents(tmp_path / "whole"), store_contents(tmp_path / "sharded")
    assert whole == sharded
    assert "train/0/rows.arrow" in whole


def test_processes_and_one_process_make_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UNIT_BYTES", 200_000)
    train, validation = films(tmp_path, num_train=40_000)
    for name, num_processes in (("one", 1), ("two", 2)):
        prepare(classification(tmp_path / name, train, validation, pack="best_fit"), num_processes=num_processes)
    assert store_contents(tmp_path / "one") == store_contents(tmp_path / "two")


def test_doing_it_again_does_nothing_and_what_changed_is_made_again(
    tmp_path: Path, small_units: None, caplog: pytest.LogCaptureFixture
) -> None:
    train, validation = films(tmp_path)
    config = classification(tmp_path / "store", train, validation)
    prepare(config)
    caplog.set_level(logging.INFO)
    prepare(config)
    assert caplog.messages[-1].endswith("nothing to do")
    kept = tmp_path / "store/train/0/part-00000.arrow"
    before = kept.stat().st_mtime_ns
    # An interrupted run: one part is missing, and so is the manifest.
    (tmp_path / "store/train/0/part-00001.arrow").unlink()
    (tmp_path / "store/manifest.json").unlink()
    prepare(config)
    assert "making the others" in caplog.text
    assert kept.stat().st_mtime_ns == before
    with Path(train["path"]).open("a") as file:
        file.write('{"text": "film 0 is very very good", "label": "awful"}\n')
    prepare(config)
    assert read_manifest(tmp_path / "store").labels == ("awful", "bad", "fair", "good")
    (table,) = TokenStore(tmp_path / "store", "train", verify=True).tables
    assert table.integers("labels", 0).tolist() == [3]


def test_records_without_text_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": text, "label": label} for text, label in (("a", 0), (" ", 1), ("b", 1), ("", 1))]
    caplog.set_level(logging.INFO)
    prepare(classification(tmp_path / "store", write_jsonl(tmp_path / "a.jsonl", rows)))
    assert "2 records without text are left out" in caplog.text
    assert read_manifest(tmp_path / "store").num_documents("train") == 2
    empty = write_jsonl(tmp_path / "empty.jsonl", rows[1:2])
    with pytest.raises(DataError, match=r"data\.train\[0\]\.path: .* holds no text"):
        prepare(classification(tmp_path / "other", empty))


def test_settings_of_language_models_are_what_they_were() -> None:
    config = data_config(Path("store"), [{"path": "a.txt", "weight": 2.0, "end": 0.9}], ({"path": "b.txt"},), tokenizer=BPE)
    assert store_settings(config) == {
        "format": "text",
        "fields": {"text": "text"},
        "tokenizer": {"kind": "bpe", "vocabulary_size": 500, "path": None},
        "train": [{"path": "a.txt", "begin": 0.0, "end": 0.9}],
        "validation": [{"path": "b.txt", "begin": 0.0, "end": 1.0}],
    }


def test_a_store_of_another_task_or_of_other_labels_is_refused(tmp_path: Path) -> None:
    train, _ = films(tmp_path)
    config = classification(tmp_path / "store", train)
    prepare(config)
    read_manifest_of(config)
    with pytest.raises(DataError, match=r"was prepared with data\.labels null, and it is now \[\"good\", \"bad\", \"fair\"\]"):
        read_manifest_of(classification(tmp_path / "store", train, labels=["good", "bad", "fair"]))
    with pytest.raises(DataError, match=r"store: was prepared with data\.fields .*run: drumline prepare CONFIG"):
        read_manifest_of(data_config(tmp_path / "store", [train], file_format="jsonl", tokenizer=WORDPIECE))


@needs_shared_data
def test_real_files_of_every_task_are_prepared(tmp_path: Path) -> None:
    def source(path: str, **more: Any) -> list[dict[str, Any]]:
        return [{"path": str(SHARED / path), **more}]

    pair = {"target_path": str(SHARED / "multi30k/val.de.gz")}
    films, dialogues = {"fields": {"text": 0, "label": 1}}, {"fields": {"document": "dialogue"}, "sequence_length": 512}
    for config, num_records in (
        (data_config(tmp_path / "a", source("sst2/dev.tsv"), file_format="tsv", tokenizer=WORD, task="classification",
                     family="bert", options=films), 872),
        (data_config(tmp_path / "b", source("multi30k/val.en.gz", **pair), file_format="lines", tokenizer=BPE,
                     task="translation", family="t5", options={"sequence_length": 256, "target_length": 288}), 1014),
        (data_config(tmp_path / "c", source("dialogsum/dev.jsonl"), file_format="jsonl", tokenizer=BPE,
                     task="summarization", options=dialogues), 100),
        (data_config(tmp_path / "d", source("xquad/dev.json"), file_format="squad", tokenizer=WORDPIECE,
                     task="question_answering", family="bert", options={"sequence_length": 256}), 125),
    ):  # fmt: skip
        prepare(config)
        assert TokenStore(Path(config.data.store), "train", verify=True).tables[0].num_records == num_records
    rows = read_manifest(tmp_path / "b").train[0].rows
    assert rows is not None and rows.share > 0.95
