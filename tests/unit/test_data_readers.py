"""Records have the fields of their task in every format and compression, and faults in them are named with their place."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config import FIELDS, SourceConfig, Task
from trainer.data.readers import Answer, Reading, Record, read_records
from trainer.data.sources import plan_units
from trainer.data.tables import FieldColumn
from trainer.errors import DataError

TEXTS = ["One line.", 'With "quotes", and commas', "naïve 語 🥁", "last"]
LABELS = ["good", "bad", "good", "fair"]
CONTEXT = "Paris is the capital of France. Ünder the bridge flows the Seine."


def reading(task: Task, file_format: str, *, multi_label: bool = False, **columns: str | int) -> Reading:
    fields = [field for field in FIELDS[task] if field in columns or field not in ("text_b", "group")]
    named = tuple(FieldColumn(field, columns.get(field, field)) for field in fields)
    return Reading(task, file_format, named, multi_label)


def records(path: Path, how: Reading, **source: Any) -> list[Record]:
    units = plan_units(SourceConfig(path=str(path), **source), how.format, "data.train[0]")
    return [record for unit in units for span in unit.spans for record in read_records(span, how)]


def complaint(path: Path, how: Reading, **source: Any) -> str:
    with pytest.raises(DataError) as caught:
        records(path, how, **source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    """A table in the format that the path's name ends with."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *(list(row.values()) for row in rows)])
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [list(columns), *(row.values() for row in rows)]))
    else:
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_texts_and_labels(tmp_path: Path, file_format: str) -> None:
    table = {"class": LABELS, "id": [1, 2, 3, 4], "title": TEXTS[::-1], "body": TEXTS}
    path = write(tmp_path / f"a.{file_format}", table)
    how = reading("classification", file_format, text="body", text_b="title", label="class")
    found = records(path, how)
    assert [record.texts for record in found] == list(zip(TEXTS, TEXTS[::-1], strict=True))
    assert [record.labels for record in found] == [(label,) for label in LABELS]
    if file_format != "parquet":
        packed = tmp_path / f"a.{file_format}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert records(packed, how) == found


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "tsv", "parquet"])
def test_labels_may_be_whole_numbers_and_several(tmp_path: Path, file_format: str) -> None:
    numbers = write(tmp_path / f"numbers.{file_format}", {"text": TEXTS, "label": [1, 0, 1, 10]})
    assert [record.labels for record in records(numbers, reading("classification", file_format))] == [
        ("1",),
        ("0",),
        ("1",),
        ("10",),
    ]
    several: list[Any] = [["a", "b"], [], ["b"], ["c", "a"]]
    if file_format in ("csv", "tsv"):
        several = [", ".join(labels) for labels in several]
    path = write(tmp_path / f"several.{file_format}", {"text": TEXTS, "label": several})
    found = records(path, reading("classification", file_format, multi_label=True))
    assert [record.labels for record in found] == [("a", "b"), (), ("b",), ("c", "a")]


def test_columns_by_number_have_no_header_line(tmp_path: Path) -> None:
    for file_format in ("tsv", "csv"):
        path = tmp_path / f"a.{file_format}"
        path.write_text("a film,1\nanother,0\n".replace(",", "\t" if file_format == "tsv" else ","))
        found = records(path, reading("classification", file_format, text=0, label=1))
        assert [(record.texts, record.labels) for record in found] == [(("a film",), ("1",)), (("another",), ("0",))]
        expected = "got text: 0, label: label; expected all of them as names, or, where the files have no header"
        assert expected in complaint(path, reading("classification", file_format, text=0))


def test_labels_that_are_none_are_named_with_their_line(tmp_path: Path) -> None:
    how, several = reading("classification", "jsonl"), reading("classification", "jsonl", multi_label=True)
    path = tmp_path / "a.jsonl"
    for label, expected in (
        ('""', "a.jsonl:2: has no label"),
        ("null", "the label is None, expected a text or a whole number"),
        ("0.5", "the label is 0.5, expected a text or a whole number"),
        ('["a"]', "for several a text set data.multi_label"),
    ):
        path.write_text('{"text": "a", "label": "b"}\n{"text": "a", "label": ' + label + "}\n")
        assert expected in complaint(path, how)
    path.write_text('{"text": "a", "label": "b"}\n')
    assert "a.jsonl:1: the label is 'b', expected a list of labels" in complaint(path, several)
    write(tmp_path / "a.csv", {"text": ["a", "two\nlines", "c"], "label": ["x", "y", ""]})
    assert "a.csv:5: has no label" in complaint(tmp_path / "a.csv", reading("classification", "csv"))


@pytest.mark.parametrize("file_format", ["jsonl", "csv", "tsv", "parquet"])
def test_missing_fields_are_named_with_those_there_are(tmp_path: Path, file_format: str) -> None:
    path = write(tmp_path / f"a.{file_format}", {"dialogue": TEXTS, "summary": TEXTS})
    message = complaint(path, reading("summarization", file_format))
    assert "'document'; it has dialogue, summary: set data.fields.document to one of them" in message
    assert records(path, reading("summarization", file_format, document="dialogue"))[1].texts == (TEXTS[1], TEXTS[1])


def test_texts_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for value, got in (("5", "5"), ("null", "null"), ('"\\ud83d"', "text with half a surrogate pair")):
        path.write_text('{"source": "a", "target": ' + value + "}\n")
        assert f"a.jsonl:1: field 'target' is {got}, expected text" in complaint(path, reading("translation", "jsonl"))
    write(tmp_path / "a.parquet", {"source": ["a", None], "target": ["b", "c"]})
    assert "row 1 (from 0) has no 'source'" in complaint(tmp_path / "a.parquet", reading("translation", "parquet"))
    (tmp_path / "a.tsv").write_text("source\ttarget\na\tb\nc\n")
    expected = "a.tsv:3: has 1 columns, expected a target in column 1 (from 0)"
    assert expected in complaint(tmp_path / "a.tsv", reading("translation", "tsv"))


def pair(folder: Path, sources: str, targets: str, suffix: str = "") -> dict[str, str]:
    for name, text in (("en", sources), ("de", targets)):
        data = text.encode()
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return {"target_path": str(folder / f"de{suffix}")}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_two_files_go_side_by_side(tmp_path: Path, suffix: str) -> None:
    source = pair(tmp_path, "a dog\n\na cat", "ein Hund\n\neine Katze\n", suffix)
    found = records(tmp_path / f"en{suffix}", reading("translation", "lines"), **source)
    assert [record.texts for record in found] == [("a dog", "ein Hund"), ("", ""), ("a cat", "eine Katze")]
    assert [record.has_all_texts for record in found] == [True, False, True]


@pytest.mark.parametrize(("sources", "targets"), [("a\nb\nc\nd\n", "x\ny\n"), ("a\nb\n", "x\ny\nz\nu\n"), ("a\n", "")])
def test_unequal_numbers_of_lines_are_named_with_both(tmp_path: Path, sources: str, targets: str) -> None:
    message = complaint(tmp_path / "en", reading("translation", "lines"), **pair(tmp_path, sources, targets))
    counts = [sources.count("\n"), targets.count("\n")]
    assert f"en has {counts[0]} lines and {tmp_path}/de {counts[1]};" in message


def test_globs_of_pairs_match_in_number(tmp_path: Path) -> None:
    for name in ("1.en", "1.de", "2.en", "2.de"):
        (tmp_path / name).write_text(f"{name}\n")
    how, source = reading("translation", "lines"), {"target_path": str(tmp_path / "*.de")}
    found = records(tmp_path / "*.en", how, **source)
    assert [record.texts for record in found] == [("1.en", "1.de"), ("2.en", "2.de")]
    (tmp_path / "2.de").unlink()
    assert "data.train[0]: 2 files match" in complaint(tmp_path / "*.en", how, **source)
    assert "data.train[0].target_path: no such file" in complaint(tmp_path / "1.en", how, target_path=str(tmp_path / "no"))


def squad(num_paragraphs: int = 1) -> dict[str, Any]:
    questions = [
        {"question": "What flows?", "id": "q1", "answers": [{"text": "Seine", "answer_start": CONTEXT.index("Seine")}]},
        {
            "question": "Where?",
            "id": "q2",
            "is_impossible": True,
            "answers": [],
            "plausible_answers": [{"text": "Paris", "answer_start": 0}],
        },
    ]
    paragraphs = [{"context": CONTEXT, "qas": questions} for _ in range(num_paragraphs)]
    return {"version": "v2.0", "data": [{"title": "a", "paragraphs": paragraphs}]}


QUESTIONS = reading("question_answering", "squad")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_squad_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    data = json.dumps(squad()).encode()
    path = tmp_path / f"train.json{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    first, second = records(path, QUESTIONS)
    assert first.texts == (CONTEXT, "What flows?")
    assert first.answers == (Answer("Seine", CONTEXT.index("Seine")),)
    assert (second.texts[1], second.answers, second.question_id) == ("Where?", (), "q2")


def test_shares_of_squad_have_no_gap_no_overlap_and_no_paragraph_in_common(tmp_path: Path) -> None:
    content = squad(10)
    for number, paragraph in enumerate(content["data"][0]["paragraphs"]):
        paragraph["context"] += f" {number}"
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    shares = [records(path, QUESTIONS, begin=begin, end=end) for begin, end in ((0.0, 0.35), (0.35, 1.0))]
    assert shares[0] + shares[1] == records(path, QUESTIONS)
    contexts = [{record.texts[0] for record in share} for share in shares]
    assert len(contexts[0]) == 4 and not contexts[0] & contexts[1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "got a JSON list, expected an object with 'data', as SQuAD has it"),
        ('{"data": [{"title": "a"}]}', "data[0]: has no 'paragraphs'; it has title"),
        ('{"data": [{"paragraphs": [{"context": 1, "qas": []}]}]}', "data[0].paragraphs[0].context: got 1, expected a str"),
        (
            '{"data": [{"paragraphs": [{"context": "a b", "qas": [{"question": "q", "id": "1", '
            '"answers": [{"text": "b", "answer_start": 1}]}]}]}]}',
            "question 0 (from 0): the context has ' ' at 1, not 'b'",
        ),
    ],
)
def test_what_is_not_squad_is_named_with_its_place(tmp_path: Path, change: str, expected: str) -> None:
    (tmp_path / "a.json").write_text(change)
    assert expected in complaint(tmp_path / "a.json", QUESTIONS)


def test_answers_come_in_several_shapes(tmp_path: Path) -> None:
    begin = CONTEXT.index("Seine")
    shapes: list[Any] = [
        {"text": ["Seine"], "answer_start": [begin]},
        [{"text": "Seine", "answer_start": begin}],
        ["Seine"],
        "Seine",
        [],
        {"text": [], "answer_start": []},
        "",
    ]
    rows = [{"context": CONTEXT, "question": "?", "answers": shape} for shape in shapes]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = records(path, reading("question_answering", "jsonl"))
    assert [record.answers for record in found] == [(Answer("Seine", begin),)] * 4 + [()] * 3
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet", reading("question_answering", "parquet"))[0].answers == (Answer("Seine", begin),)
    path.write_text(json.dumps({"context": CONTEXT, "question": "?", "answers": "Rhine"}))
    assert "a.jsonl:1: the answer 'Rhine' is not in the context" in complaint(path, reading("question_answering", "jsonl"))
