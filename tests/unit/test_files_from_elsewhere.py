"""Files that others made can neither fill the memory, nor lead out of their folder, nor end a program in a traceback."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.data_corpora import BPE, data_config, write_corpus, write_jsonl
from trainer.checkpoint_manifest import MANIFEST, manifest_bytes, read_manifest
from trainer.data import input_files, manifest
from trainer.data.input_files import byte_lines, checked_read, open_span
from trainer.data.prepare import prepare
from trainer.data.sources import Span
from trainer.data.store import TokenStore
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError
from trainer.files import is_inside

DEEP = "[" * 100_000
OUTSIDE = ["../elsewhere.arrow", "/etc/passwd", "train/../../elsewhere", "..\\elsewhere", "", "a\0b"]


def span_of(path: Path) -> Span:
    size = path.stat().st_size
    return Span(str(path), size, 0, 0, size)


def compressed(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        packer = zlib.compressobj(wbits=31)
        path.write_bytes(packer.compress(content) + packer.flush())
    else:
        path.write_bytes(pa.compress(content, "zstd", asbytes=True))
    return path


@pytest.mark.parametrize("name", ["bomb.gz", "bomb.zst"])
def test_a_compressed_file_that_holds_far_more_than_text_would_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_files, "ALWAYS_HELD_BYTES", 2**20)
    bomb = compressed(tmp_path / name, b"a" * 99 + b"\n" + b"\0" * (64 * 2**20))
    with (
        pytest.raises(DataError, match=r"holds more than [0-9,]+ bytes, over 200 times its own size"),
        open_span(span_of(bomb)) as file,
    ):
        checked_read(file, str(bomb))
    with pytest.raises(DataError, match="over 200 times its own size"):
        list(byte_lines(span_of(bomb)))
    with pytest.raises(DataError, match="over 200 times its own size"):
        prepare(data_config(tmp_path / "store", [{"path": str(bomb)}], file_format="lines"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["text.gz", "text.zst"])
def test_text_that_is_compressed_well_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "ALWAYS_HELD_BYTES", 0)
    content = write_corpus(tmp_path / "a", 2_000_000).read_bytes()
    assert b"".join(line for _, line in byte_lines(span_of(compressed(tmp_path / name, content)))) == content


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "LONGEST_LINE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 999 + b"\n" + b"b" * 1000)
    assert [len(line) for _, line in byte_lines(span_of(path))] == [1000, 1000]
    path.write_bytes(b"a" * 1000 + b"\n")
    with pytest.raises(DataError, match=r"a\.txt: has a line of over 1,000 bytes"):
        list(byte_lines(span_of(path)))


@pytest.mark.parametrize("file_format", ["jsonl", "squad"])
def test_json_of_any_depth_is_a_complaint(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "deep"
    path.write_text(DEEP)
    options = {"fields": {}, "window_overlap": 4} if file_format == "squad" else {}
    task = "question_answering" if file_format == "squad" else "language_modeling"
    family = "bert" if file_format == "squad" else "gpt"
    config = data_config(
        tmp_path / "store",
        [{"path": str(path)}],
        file_format=file_format,
        task=task,
        family=family,
        tokenizer=BPE,
        options=options,
    )
    with pytest.raises(DataError, match=r"deep.*is not JSON"):
        prepare(config)


def test_a_tokenizer_of_any_depth_is_a_complaint(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def stored(folder: Path) -> Path:
    train = write_jsonl(folder / "a.jsonl", [{"text": "some words"}, {"text": "and others"}])
    prepare(data_config(folder / "store", [train], file_format="jsonl"))
    return folder / "store"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_store_does_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    store = stored(tmp_path)
    content: dict[str, Any] = json.loads((store / "manifest.json").read_text())
    content["train"][0]["parts"][0]["file"] = name
    (store / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json: names the file .*, which is not in the store"):
        manifest.read_manifest(store)


def test_manifests_of_any_depth_are_complaints(tmp_path: Path) -> None:
    store = stored(tmp_path)
    (store / "manifest.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        manifest.read_manifest(store)
    (tmp_path / MANIFEST).write_text(DEEP)
    assert (read_manifest(tmp_path, 1)[1] or "").startswith(f"{MANIFEST} is damaged")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_checkpoint_does_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    good = {"step": 1, "files": {"weights.safetensors": {"num_bytes": 1, "sha256": ""}}}
    (tmp_path / MANIFEST).write_bytes(manifest_bytes(good))
    assert read_manifest(tmp_path, 1)[1] is None
    # Whoever can write a manifest can give it the hash that it ought to have.
    (tmp_path / MANIFEST).write_bytes(manifest_bytes({**good, "files": {name: {"num_bytes": 1, "sha256": ""}}}))
    assert read_manifest(tmp_path, 1)[1] == f"{MANIFEST} names the file {name!r}, which is not in the checkpoint"
    for nothing in (None, [], "weights"):
        (tmp_path / MANIFEST).write_bytes(manifest_bytes({**good, "files": nothing}))
        assert read_manifest(tmp_path, 1)[1] == f"{MANIFEST} does not say what files there are"


def test_random_bytes_in_the_place_of_a_manifest_are_complaints(tmp_path: Path) -> None:
    generator, store = np.random.default_rng(0), stored(tmp_path)
    whole = (store / "manifest.json").read_bytes()
    num_refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in generator.integers(0, len(whole), generator.integers(1, 4)):
            changed[place] = generator.integers(0, 256)
        (store / "manifest.json").write_bytes(
            changed[: generator.integers(1, len(whole) + 1)] if generator.random() < 0.3 else changed
        )
        try:
            manifest.read_manifest(store)
        except DataError:
            num_refused += 1
    assert 100 < num_refused <= 300


def test_what_is_inside() -> None:
    assert all(map(is_inside, ["a", "train/0/part-00000.arrow", "a..b", "...", "./a"]))
    assert not any(map(is_inside, OUTSIDE))


def test_a_part_of_a_store_that_lacks_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text\n")
    store = tmp_path / "store"
    prepare(data_config(store, [{"path": str(tmp_path / "text.txt")}]))
    (part,) = store.glob("train/0/*.arrow")
    with pa.OSFile(str(part)) as file:
        column = pa.ipc.open_file(file).read_all().column("tokens").combine_chunks()
    values = pa.array([None, *column.values.to_pylist()[1:]], column.type.value_type)
    lists = pa.LargeListArray.from_arrays(column.offsets, values)
    with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, pa.schema([("tokens", lists.type)])) as writer:
        writer.write_batch(pa.record_batch([lists], names=["tokens"]))
    content = json.loads((store / manifest.MANIFEST_NAME).read_text())
    content["train"][0]["parts"][0]["num_bytes"] = part.stat().st_size
    (store / manifest.MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"is not a whole Arrow file \(a value is missing\)"):
        TokenStore(store, "train")
