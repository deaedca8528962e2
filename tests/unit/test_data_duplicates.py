"""Training texts that are there before already are left out, the same and the nearly same, and no others."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data_corpora import BPE, classification, data_config, write_jsonl
from tests.unit.test_data_personal_data import decoded
from trainer.data.duplicates import Place, find_equal, find_similar, minima_of, signatures_of
from trainer.data.manifest import read_manifest, read_manifest_of
from trainer.data.prepare import prepare
from trainer.data.sources import Span
from trainer.data.store import TokenStore
from trainer.errors import DataError

SPAN = Span("file", 0, 0, 0, 0)


def words(draw: random.Random, count: int) -> list[str]:
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(count)]


def numbers(pairs: Any) -> list[tuple[int, int]]:
    return [(place.number, original.number) for place, original in pairs]


def signatures(texts: list[str], *, is_near: bool) -> list[Any]:
    return [signatures_of("part", [(SPAN, [(text,) for text in texts])], is_near=is_near)]


def true_similarity(one: str, other: str) -> float:
    """Of the sets of runs of five words (Jaccard)."""
    first, second = ({tuple(each.split()[i : i + 5]) for i in range(len(each.split()) - 4)} for each in (one, other))
    return len(first & second) / len(first | second)


def test_equal_texts_are_found_with_the_first_of_them() -> None:
    assert numbers(find_equal(signatures(["a", "b", "a", "A", "b", "a"], is_near=False))) == [(2, 0), (4, 1), (5, 0)]


def test_minima_estimate_the_share_of_runs_in_common() -> None:
    draw, errors = random.Random(1), []
    for _ in range(40):
        text = words(draw, 300)
        other = [*text]
        for place in draw.sample(range(300), draw.randint(1, 40)):
            other[place] = "changed"
        one, two = " ".join(text), " ".join(other)
        errors.append(np.mean(minima_of(one) == minima_of(two)) - true_similarity(one, two))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.06


def test_nearly_equal_texts_are_found_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(5)
    originals = [words(draw, draw.randint(60, 300)) for _ in range(400)]
    texts = [" ".join(each) for each in originals]
    near, far = [], []
    for number in draw.sample(range(400), 200):
        changed = [*originals[number]]
        # One word in a hundred changed leaves nine tenths of the runs and more; one in eight, less than half.
        share, kind = (0.01, near) if number % 2 else (0.125, far)
        for place in draw.sample(range(len(changed)), max(1, round(share * len(changed)))):
            changed[place] = "changed"
        text = " ".join(changed).upper() + "!"
        if (kind is near) == (true_similarity(texts[number], text.lower().rstrip("!")) > 0.88):
            kind.append((len(texts), number))
            texts.append(text)
    found = numbers(find_similar(signatures(texts, is_near=True), 0.8))
    with capsys.disabled():
        print(f"\nnear duplicates: {len(set(near) & set(found))} of {len(near)} found, {len(set(found) - set(near))} others")
    assert len(near) > 50 and len(far) > 50
    assert set(found) == set(near)


def test_texts_without_words_are_no_duplicates() -> None:
    assert numbers(find_similar(signatures(["...", "!!", "a", "A."], is_near=True), 0.8)) == [(3, 2)]


def rows_of(texts: list[str], **others: Any) -> list[dict[str, Any]]:
    return [{"text": text, **others} for text in texts]


LONG = "the first of several words that make a text which is long enough to be compared with another one of its kind"
TEXTS = [LONG, "something else altogether", LONG.upper(), LONG, f"{LONG} and more", "ZZZ", "ZZZ"]


@pytest.mark.parametrize(("kind", "num_left"), [("exact", 5), ("near", 3)])
def test_documents_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, num_left: int) -> None:
    caplog.set_level(logging.INFO)
    train = write_jsonl(tmp_path / "a.jsonl", rows_of(TEXTS))
    validation = write_jsonl(tmp_path / "b.jsonl", rows_of([LONG, LONG]))
    store = tmp_path / "store"
    config = data_config(store, [train], (validation,), file_format="jsonl", options={"duplicates": {"kind": kind}})
    prepare(config)
    assert read_manifest(store).num_documents("train") == num_left
    assert read_manifest(store).num_documents("validation") == 2
    assert decoded(store).count("ZZZ") == 1
    report = json.loads((store / "duplicates.json").read_text())
    assert report["num_texts"] == len(TEXTS) - num_left
    assert report["examples"][-1].startswith(f"text {4 if kind == 'near' else 6} of {tmp_path}/a.jsonl after text ")
    caplog.clear()
    prepare(config)
    assert [message for message in caplog.messages if "before already" in message] == []
    assert caplog.messages[-1].endswith("nothing to do")


def test_records_are_left_out_over_all_sources_and_a_file_given_twice_counts_once(tmp_path: Path) -> None:
    texts = [" ".join(words(random.Random(number), 20)) for number in range(30)]
    first = write_jsonl(tmp_path / "a.jsonl", rows_of(texts[:20], label="a"))
    second = write_jsonl(tmp_path / "b.jsonl", rows_of(texts[10:], label="b"))
    config = classification(tmp_path / "store", first, tokenizer=BPE, duplicates={"kind": "exact"})
    sources = config.data.train * 2 + (config.data.train[0].model_copy(update={"path": second["path"]}),)
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": sources})})
    with pytest.raises(DataError, match=r"data\.train\[1\]\.path: .* holds no text"):
        prepare(config)
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": sources[1:]})})
    prepare(config)
    assert [table.num_records for table in TokenStore(tmp_path / "store", "train").tables] == [20, 10]


def test_other_inputs_are_searched_anew_and_other_rules_make_another_store(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", rows_of(["one", "two", "one"]))
    config = data_config(tmp_path / "store", [train], file_format="jsonl", options={"duplicates": {"kind": "exact"}})
    prepare(config)
    assert read_manifest(tmp_path / "store").num_documents("train") == 2
    write_jsonl(tmp_path / "a.jsonl", rows_of(["one", "two", "three"]))
    prepare(config)
    assert read_manifest(tmp_path / "store").num_documents("train") == 3
    plain = data_config(tmp_path / "store", [train], file_format="jsonl")
    with pytest.raises(DataError, match=r"was prepared with data\.duplicates"):
        read_manifest_of(plain)
    prepare(plain)
    assert not (tmp_path / "store/duplicates.json").exists()


def test_shards_leave_out_the_same(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / f"{number}.jsonl", rows_of(["the same", f"{number}"])) for number in range(3)]
    config = data_config(tmp_path / "store", sources, file_format="jsonl", options={"duplicates": {"kind": "exact"}})
    for number in (3, 1, 2):
        prepare(config, shard=(number, 3), merge=True)
    manifest = read_manifest(tmp_path / "store")
    assert [dataset.num_documents for dataset in manifest.train] == [2, 1, 1]


def test_a_fault_leaves_no_trace(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", rows_of(["one", "one"]))
    (tmp_path / "b.jsonl").write_text("no JSON\n")
    options = {"duplicates": {"kind": "exact"}}
    validation = {"path": str(tmp_path / "b.jsonl")}
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        prepare(data_config(tmp_path / "store", [train], (validation,), file_format="jsonl", options=options))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"duplicates": {"kind": "exact"}, "format": "text"}, "a file is one text"),
        ({"duplicates": {"kind": "exact", "similarity": 0.9}}, "nothing with kind exact"),
        ({"duplicates": {"kind": "near", "similarity": 0.1}}, "similarity"),
    ],
)
def test_rules_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    file_format = options.get("format", "jsonl")
    with pytest.raises(ValueError, match=complaint):
        data_config(tmp_path, [{"path": "a"}], file_format=file_format, options=options)


def test_places_are_in_the_order_of_the_texts() -> None:
    (each,) = signatures(["a", "b"], is_near=False)
    assert list(each.places) == [Place(("part", "file", 0), 0), Place(("part", "file", 0), 1)]
