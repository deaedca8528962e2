"""Training texts that evaluation texts have parts of are found and left out, and no others."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_corpora import BPE, classification, data_config, write_jsonl
from tests.unit.test_data_personal_data import decoded
from trainer.data.manifest import read_manifest, read_manifest_of
from trainer.data.overlap import OverlapIndex, OverlapReport, OverlapRule, overlapping
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore
from trainer.errors import DataError

RULE = OverlapRule(num_words=13, least_words=5, evaluated=(), sha256s=())
NUM_PLANTED = 20
DECONTAMINATION = {"decontamination": {}}


def sentence(draw: random.Random, num_words: int) -> str:
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 8))) for _ in range(num_words))


def planted(draw: random.Random, text: str) -> str:
    """Thirteen words of a text or all of a shorter one, among others, in other case and with other marks between them."""
    words = text.split()
    begin = draw.randint(0, max(0, len(words) - RULE.num_words))
    run = [word.upper() if draw.random() < 0.3 else word for word in words[begin : begin + RULE.num_words]]
    marked = draw.choice([" ", ", ", "\n", " -- "]).join(run)
    return f"{sentence(draw, draw.randint(0, 30))} {marked}. {sentence(draw, draw.randint(0, 30))}"


def corpora(draw: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Evaluation texts long and short, training texts that have parts of twenty of them, and such as have not enough."""
    evaluated = [sentence(draw, draw.choice([5, 8, 13, 40, 100])) for _ in range(200)]
    caught = [planted(draw, text) for text in draw.sample(evaluated, NUM_PLANTED)]
    clean = [sentence(draw, draw.randint(3, 60)) for _ in range(2000)]
    for text in draw.sample([text for text in evaluated if len(text.split()) >= 13], 40):
        words = text.split()
        # Twelve words of thirteen, and all of them in another order, are no overlap.
        clean.append(" ".join([*words[:12], "other", *words[13:14]]))
        clean.append(" ".join(reversed(words)))
    return evaluated, caught, clean


def test_twenty_planted_overlaps_of_twenty_are_found_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    evaluated, caught, clean = corpora(random.Random(7))
    index, report = OverlapIndex.of(evaluated, RULE), OverlapReport()
    found = sum(overlapping([text], index, report) for text in caught)
    wrong = sum(overlapping([text], index, OverlapReport()) for text in clean)
    with capsys.disabled():
        print(f"\ndecontamination: {found} of {NUM_PLANTED} planted overlaps found, {wrong} of {len(clean)} other texts")
    assert (found, wrong, report.num_texts) == (NUM_PLANTED, 0, NUM_PLANTED)
    assert len(report.examples) == 3 and report.examples[0] in " ".join(" ".join(evaluated).split())


def test_short_evaluation_texts_count_only_as_a_whole_and_very_short_ones_not() -> None:
    index = OverlapIndex.of(["six words are all there is", "no more than four"], RULE)
    assert index.find("that Six words are, all there is: to say") == "six words are all there is"
    assert index.find("words are all there is") is None
    assert index.find("there are no more than four here") is None


def rows_of(texts: list[str], **others: Any) -> list[dict[str, Any]]:
    return [{"text": text, **others} for text in texts]


def test_documents_are_left_out_and_the_tokenizer_does_not_learn_from_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shared = "one two three four five six seven eight nine ten eleven twelve thirteen"
    train = write_jsonl(tmp_path / "a.jsonl", rows_of([f"ZZZ {shared}", "another text", "a third one"]))
    validation = write_jsonl(tmp_path / "b.jsonl", rows_of([f"so: {shared}, and so on"]))
    store = tmp_path / "store"
    prepare(data_config(store, [train], (validation,), file_format="jsonl", options=DECONTAMINATION))
    assert read_manifest(store).num_documents("train") == 2
    assert read_manifest(store).num_documents("validation") == 1
    assert "ZZZ" not in decoded(store)
    assert "Z" not in json.loads((store / "tokenizer.json").read_text())["model"]["vocab"]
    report = json.loads((store / "decontamination.json").read_text())
    assert (report["num_texts"], report["examples"]) == (1, [shared])
    assert "1 training texts left out: they share 13 words with the validation data" in caplog.text


def test_records_are_left_out_by_any_of_their_texts(tmp_path: Path) -> None:
    draw = random.Random(3)
    evaluated, caught, clean = corpora(draw)
    train = [{"text": text, "label": draw.choice("ab")} for text in [*caught, *clean]]
    draw.shuffle(train)
    sources = write_jsonl(tmp_path / "a.jsonl", train), write_jsonl(tmp_path / "b.jsonl", rows_of(evaluated, label="a"))
    store = tmp_path / "store"
    prepare(classification(store, *sources, tokenizer=BPE, **DECONTAMINATION))
    assert TokenStore(store, "train").tables[0].num_records == len(clean)
    assert TokenStore(store, "validation").tables[0].num_records == len(evaluated)


def test_other_evaluation_texts_make_another_store_and_the_same_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", rows_of(["here are five plain words", "here are five other words"]))
    validation = write_jsonl(tmp_path / "b.jsonl", rows_of(["these are five more words"]))
    config = data_config(tmp_path / "store", [train], (validation,), file_format="jsonl", options=DECONTAMINATION)
    prepare(config)
    caplog.set_level(logging.INFO)
    prepare(config)
    assert caplog.messages[-1].endswith("nothing to do")
    assert read_manifest(tmp_path / "store").num_documents("train") == 2
    write_jsonl(tmp_path / "b.jsonl", rows_of(["here are five plain words"]))
    prepare(config)
    assert read_manifest(tmp_path / "store").num_documents("train") == 1
    plain = data_config(tmp_path / "store", [train], (validation,), file_format="jsonl")
    with pytest.raises(DataError, match=r"was prepared with data\.decontamination"):
        read_manifest_of(plain)
    prepare(plain)
    assert read_manifest(tmp_path / "store").num_documents("train") == 2
    assert not (tmp_path / "store/decontamination.json").exists()


def test_shards_leave_out_the_same(tmp_path: Path) -> None:
    texts = ["here are five plain words", "here are five other words"]
    sources = [write_jsonl(tmp_path / f"{number}.jsonl", rows_of([text, f"{number}"])) for number, text in enumerate(texts)]
    validation = write_jsonl(tmp_path / "validation.jsonl", rows_of(texts))
    config = data_config(tmp_path / "store", sources, (validation,), file_format="jsonl", options=DECONTAMINATION)
    for number in (1, 2, 3):
        prepare(config, shard=(number, 3), merge=True)
    assert read_manifest(tmp_path / "store").num_documents("train") == 2
    assert json.loads((tmp_path / "store/decontamination.json").read_text())["num_texts"] == 2


@pytest.mark.parametrize(
    ("options", "validation", "complaint"),
    [
        (DECONTAMINATION, (), "no validation data"),
        (DECONTAMINATION | {"format": "text"}, ({"path": "b"},), "a file is one text"),
        ({"decontamination": {"words": 4}}, ({"path": "b"},), "got 5, expected at most `words`, which is 4"),
    ],
)
def test_rules_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], validation: tuple[dict[str, Any], ...], complaint: str
) -> None:
    file_format = options.get("format", "jsonl")
    with pytest.raises(ValueError, match=complaint):
        data_config(tmp_path, [{"path": "a"}], validation, file_format=file_format, options=options)
