"""Every format and compression gives the same documents; shares of files fit together; faults are named with their
place."""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.data_corpora import TEXT, write_corpus
from trainer.config import SourceConfig
from trainer.data import readers, sources
from trainer.data.readers import PIECE_LENGTH, Reading, read_pieces
from trainer.data.sources import plan_units
from trainer.data.tables import FieldColumn
from trainer.errors import DataError

DOCUMENTS = ["One line.", 'With "quotes", commas, and tabs', "naïve 語 🥁", "last"]
MULTILINE = [*DOCUMENTS, "two\nlines, and\r\na third"]


def reading(file_format: str, field: str | int = "text") -> Reading:
    return Reading("language_modeling", file_format, (FieldColumn("text", field),))


def documents(
    pattern: Path | str, file_format: str, field: str | int = "text", begin: float = 0.0, end: float = 1.0
) -> list[str]:
    """All documents that a source gives, put together from their pieces."""
    source = SourceConfig(path=str(pattern), begin=begin, end=end)
    found, text = [], ""
    for unit in plan_units(source, file_format, "data.train[0]"):
        for span in unit.spans:
            for piece in read_pieces(span, reading(file_format, field)):
                text += piece.text
                if piece.ends_document:
                    found.append(text)
                    text = ""
    assert not text
    return found


def write(path: Path, file_format: str, texts: list[str]) -> Path:
    if file_format == "text":
        path.write_text("\n".join(texts), encoding="utf-8")
    elif file_format == "lines":
        path.write_text("\n".join(texts) + "\n\n", encoding="utf-8")
    elif file_format == "jsonl":
        path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts), encoding="utf-8")
    elif file_format == "tsv":
        path.write_text("id\ttext\n" + "".join(f"1\t{text}\n" for text in texts), encoding="utf-8")
    elif file_format == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "text"], *(["1", text] for text in texts)])
    else:
        pq.write_table(pa.table({"id": [1] * len(texts), "text": texts}), path, row_group_size=2)
    return path


def compress(path: Path, kind: str) -> Path:
    """Compresses in two members, as parallel compressors and concatenation make them."""
    data = path.read_bytes()
    halves = (data[: len(data) // 2], data[len(data) // 2 :])
    packed = path.with_name(f"{path.name}.{kind}")
    if kind == "gz":
        packed.write_bytes(b"".join(gzip.compress(half) for half in halves))
    else:
        packed.write_bytes(b"".join(pa.compress(half, "zstd", asbytes=True) for half in halves))
    return packed


@pytest.mark.parametrize("kind", ["plain", "gz", "zst"])
@pytest.mark.parametrize("file_format", ["text", "lines", "jsonl", "csv", "tsv"])
def test_formats_and_compressions_give_the_same_documents(tmp_path: Path, file_format: str, kind: str) -> None:
    texts = MULTILINE if file_format in ("jsonl", "csv") else DOCUMENTS
    path = write(tmp_path / "corpus", file_format, texts)
    path = path if kind == "plain" else compress(path, kind)
    assert documents(path, file_format) == (["\n".join(texts)] if file_format == "text" else texts)


def test_parquet_gives_the_same_documents(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "corpus.parquet", "parquet", MULTILINE), "parquet") == MULTILINE


def test_columns_by_number_take_the_first_line_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('1,"a ""b"""\n2,c\n')
    (tmp_path / "a.tsv").write_text('1\ta "b\n2\tc\n')
    assert documents(tmp_path / "a.csv", "csv", 1) == ['a "b"', "c"]
    assert documents(tmp_path / "a.tsv", "tsv", 1) == ['a "b', "c"]


def test_globs_are_sorted_and_reach_any_depth(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z/c.txt", "a/d.txt", "a/d.other"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert documents(tmp_path / "**" / "*.txt", "text") == ["a/d.txt", "a/z/c.txt", "b.txt"]
    assert documents(tmp_path / "*.txt", "text") == ["b.txt"]


def test_a_byte_order_mark_and_empty_records_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\n  \r\n\r\nb")
    assert documents(tmp_path / "a.txt", "lines") == ["a", "b"]
    (tmp_path / "empty.txt").write_bytes(b"")
    assert documents(tmp_path / "*.txt", "text") == ["a\r\n  \r\n\r\nb"]


@pytest.mark.parametrize("file_format", ["text", "lines", "jsonl", "csv", "tsv", "parquet"])
def test_shares_of_a_file_have_no_gap_and_no_overlap(tmp_path: Path, file_format: str) -> None:
    texts = [f"{number} {'語' * (number % 50)}x" for number in range(500)]
    if file_format == "csv":
        texts = [text + "\nsecond line" for text in texts]
    path = write(tmp_path / "corpus", file_format, texts)
    whole = documents(path, file_format)
    for cuts in ([0, 0.9, 1], [0, 0.1, 0.35, 0.351, 0.8, 1], [0, 1e-9, 1]):
        shares = [documents(path, file_format, "text", *ends) for ends in itertools.pairwise(cuts)]
        joined = [text for share in shares for text in share]
        assert joined == whole if file_format != "text" else "".join(joined) == whole[0]
    assert 0.8 < len("".join(documents(path, file_format, "text", 0.0, 0.9))) / len("".join(whole)) < 0.95


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(sources, "UNIT_BYTES", 10_000)
    yield 10_000


def test_large_files_are_divided_and_small_ones_put_together(tmp_path: Path, small_units: int) -> None:
    write_corpus(tmp_path / "large.txt", 100_000)
    units = plan_units(SourceConfig(path=str(tmp_path / "large.txt")), "text", "key")
    assert len(units) > 8
    assert [span.ends_document for unit in units for span in unit.spans].count(True) == 1
    for number in range(100):
        (tmp_path / f"small-{number:03d}").write_text("x" * 500)
    units = plan_units(SourceConfig(path=str(tmp_path / "small-*")), "text", "key")
    assert [len(unit.spans) for unit in units] == [20] * 5


@pytest.mark.parametrize("file_format", ["text", "lines", "jsonl", "tsv", "parquet"])
def test_divided_files_give_the_same_documents(tmp_path: Path, file_format: str, small_units: int) -> None:
    texts = [f"{number} {'語' * (number % 50)}" for number in range(3000)]
    path = write(tmp_path / "corpus", file_format, texts)
    if file_format == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    assert len(plan_units(SourceConfig(path=str(path)), file_format, "key")) > 5
    assert documents(path, file_format) == (["\n".join(texts)] if file_format == "text" else texts)


def test_long_documents_come_in_pieces_that_end_with_lines(tmp_path: Path) -> None:
    text = TEXT * 3
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    for name, file_format in (("a.txt", "text"), ("a.jsonl", "jsonl")):
        (unit,) = plan_units(SourceConfig(path=str(tmp_path / name)), file_format, "key")
        pieces = list(read_pieces(unit.spans[0], reading(file_format)))
        assert len(pieces) > 3
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert all(piece.text.endswith("\n") and len(piece.text) <= 2 * PIECE_LENGTH for piece in pieces[:-1])


def test_text_without_any_line_end_comes_in_pieces_of_whole_characters(tmp_path: Path) -> None:
    text = "語🥁é" * 200_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (unit,) = plan_units(SourceConfig(path=str(tmp_path / "a.txt")), "text", "key")
    pieces = list(read_pieces(unit.spans[0], reading("text")))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) <= PIECE_LENGTH


def complaint(path: Path | str, file_format: str, field: str | int = "text", begin: float = 0.0) -> str:
    with pytest.raises(DataError) as caught:
        documents(path, file_format, field, begin)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert "data.train[0].path: no such file: " in complaint(tmp_path / "a.txt", "text")
    assert f"no file matches {tmp_path}/*.txt" in complaint(tmp_path / "*.txt", "text")
    assert "is a folder; write which files" in complaint(tmp_path, "text")


def test_undecodable_text_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 200_000 + b"caf\xe9\n" + b"fine\n" * 10)
    for file_format in ("text", "lines", "jsonl", "csv", "tsv"):
        if file_format in ("text", "lines"):
            expected = f"{path}:200001: byte 0xe9 at offset 1000003 is not UTF-8"
            assert expected in complaint(path, file_format)
    packed = compress(path, "gz")
    assert f"{packed}:200001: byte 0xe9 at offset 1000003" in complaint(packed, "lines")
    (tmp_path / "cut.txt").write_bytes("語".encode()[:2])
    assert "cut.txt:1: byte 0xe8 at offset 0 is not UTF-8" in complaint(tmp_path / "cut.txt", "text")


def test_records_that_are_not_as_expected_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    cases = {
        '{"text": ': "a.jsonl:2: is not JSON (",
        '["a"]': "a.jsonl:2: got a JSON list, expected an object",
        '{"body": "a", "id": 1}': "a.jsonl:2: has no field 'text'; it has body, id: set data.fields.text",
        '{"text": 5}': "a.jsonl:2: field 'text' is 5, expected text",
        '{"text": "\\ud83d"}': "a.jsonl:2: field 'text' is text with half a surrogate pair",
    }
    for line, expected in cases.items():
        path.write_text('{"text": "a"}\n' + line + "\n")
        assert expected in complaint(path, "jsonl")


def test_tables_without_the_column_name_the_ones_they_have(tmp_path: Path) -> None:
    for file_format in ("csv", "tsv", "parquet"):
        path = write(tmp_path / f"a.{file_format}", file_format, DOCUMENTS)
        assert "has no column 'body'; it has id, text: set data.fields.text" in complaint(path, file_format, "body")
    assert "column 'id' is of type int64, expected string" in complaint(tmp_path / "a.parquet", "parquet", "id")
    (tmp_path / "short.tsv").write_text("id\ttext\n1\ta\n2\n")
    (tmp_path / "short.csv").write_text('id,text\n1,"a\nb"\n2\n')
    assert "short.tsv:3: has 1 columns, expected a text in column 1" in complaint(tmp_path / "short.tsv", "tsv")
    assert "short.csv:4: has 1 columns, expected a text in column 1" in complaint(tmp_path / "short.csv", "csv")
    (tmp_path / "open.csv").write_text('id,text\n1,"a\n')
    assert "open.csv:2: is not CSV" in complaint(tmp_path / "open.csv", "csv")


def test_missing_values_in_parquet_are_named_with_their_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", None]}), tmp_path / "a.parquet", row_group_size=2)
    assert "row 2 (from 0) has no 'text'" in complaint(tmp_path / "a.parquet", "parquet")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_text("not compressed")
    assert "plain.gz: cannot be read (" in complaint(tmp_path / "plain.gz", "lines")
    packed = compress(write_corpus(tmp_path / "a", 100_000), "zst")
    packed.write_bytes(packed.read_bytes()[:-10])
    assert "a.zst: cannot be read (" in complaint(packed, "text")
    (tmp_path / "a.parquet").write_text("PAR1 no")
    assert "a.parquet is not a Parquet file" in complaint(tmp_path / "a.parquet", "parquet")


def test_shares_of_compressed_files_are_refused(tmp_path: Path) -> None:
    packed = compress(write_corpus(tmp_path / "a", 1000), "gz")
    assert "is compressed, and `begin` and `end` need to skip in it; decompress or split" in complaint(
        packed, "text", begin=0.5
    )


def test_the_hash_of_a_file_that_was_read_whole_is_its_sha256sum(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "a.txt", 10_000)
    (unit,) = plan_units(SourceConfig(path=str(path)), "text", "key")
    assert readers.digest(unit.spans[0], reading("text")) == hashlib.sha256(path.read_bytes()).hexdigest()
