"""A store is the same however often, in how many pieces, and after how many interruptions it was made; bad input leaves
nothing behind."""

from __future__ import annotations

import gzip
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data_corpora import BPE, CHARACTER, TEXT, data_config, store_contents, write_corpus
from trainer.config import Config
from trainer.data import sources
from trainer.data.manifest import read_manifest
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore, open_samples
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError

ROOT = Path(__file__).parents[2]
SMALL_UNIT_BYTES = 100_000


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UNIT_BYTES", SMALL_UNIT_BYTES)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", 1_000_000)


def text_of(store: Path, split: str = "train") -> str:
    """All text of a split, from its tokens."""
    tokenizer = Tokenizer.load(store / "tokenizer.json")
    streams = TokenStore(store, split, verify=True).streams  # type: ignore[arg-type]
    return "".join(tokenizer.decode(segment.tolist()) for stream in streams for segment in stream.segments)


@pytest.mark.parametrize("tokenizer", [CHARACTER, BPE], ids=lambda tokenizer: tokenizer["kind"])
def test_the_store_holds_the_text(tmp_path: Path, corpus: Path, small_units: None, tokenizer: dict[str, Any]) -> None:
    store = tmp_path / "store"
    shares = {"path": str(corpus), "end": 0.9}, {"path": str(corpus), "begin": 0.9}
    prepare(data_config(store, [shares[0]], (shares[1],), tokenizer=tokenizer), num_processes=1)
    assert text_of(store) + text_of(store, "validation") == corpus.read_text()
    manifest = read_manifest(store)
    assert manifest.num_documents("train") == manifest.num_documents("validation") == 1
    assert len(manifest.train[0].parts) > 5
    assert manifest.token_dtype == "uint16"
    assert sum(each.end - each.begin for each in manifest.train[0].inputs + manifest.validation[0].inputs) == len(
        corpus.read_bytes()
    )


def test_processes_and_one_process_make_the_same_store(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a.txt", 3_000_000)
    write_corpus(tmp_path / "b.txt", 100_000)
    train = [{"path": str(tmp_path / "a.txt"), "weight": 2.0}, {"path": str(tmp_path / "b.txt"), "weight": 1.0}]
    prepare(data_config(tmp_path / "one", train, tokenizer=BPE), num_processes=1)
    prepare(data_config(tmp_path / "two", train, tokenizer=BPE), num_processes=2)
    assert store_contents(tmp_path / "one") == store_contents(tmp_path / "two")
    samples = open_samples(data_config(tmp_path / "one", train, tokenizer=BPE), "train")
    assert [part.num_samples for part in samples] == [
        (dataset.num_tokens - 1) // 16 for dataset in read_manifest(tmp_path / "one").train
    ]


def test_doing_it_again_does_nothing_and_says_so(
    tmp_path: Path, corpus: Path, small_units: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = data_config(tmp_path / "store", [{"path": str(corpus)}])
    prepare(config, num_processes=1)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    caplog.set_level(logging.INFO)
    prepare(config, num_processes=1)
    assert "is whole already, 11 parts: nothing to do" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}


def test_only_what_changed_is_made_again(tmp_path: Path, small_units: None, caplog: pytest.LogCaptureFixture) -> None:
    train, validation = (
        write_corpus(tmp_path / "train.txt", 300_000),
        write_corpus(tmp_path / "more.txt", 300_000, seed=1),
    )
    config = data_config(tmp_path / "store", [{"path": str(train)}], ({"path": str(validation)},))
    prepare(config, num_processes=1)
    kept = tmp_path / "store/train/0/part-00000.arrow"
    before = kept.stat().st_mtime_ns
    write_corpus(validation, 250_000, seed=2)
    caplog.set_level(logging.INFO)
    prepare(config, num_processes=1)
    assert kept.stat().st_mtime_ns == before
    assert "parts are whole already; making the others" in caplog.text
    assert "parts came from other inputs, settings or tokens; making them again" in caplog.text
    assert text_of(tmp_path / "store", "validation") == validation.read_text()
    os.utime(validation)
    prepare(config, num_processes=1)
    assert caplog.messages[-1].endswith("nothing to do")


def test_changed_training_text_or_settings_train_the_tokenizer_anew(
    tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    prepare(data_config(store, [{"path": str(corpus)}]), num_processes=1)
    corpus.write_text("another text, with a letter that was not there: ß")
    caplog.set_level(logging.INFO)
    prepare(data_config(store, [{"path": str(corpus)}]), num_processes=1)
    assert "the tokenizer is another one than before, so all parts are made again" in caplog.text
    assert text_of(store) == corpus.read_text()
    prepare(data_config(store, [{"path": str(corpus)}], tokenizer=BPE), num_processes=1)
    assert text_of(store) == corpus.read_text()


def test_parts_of_an_earlier_configuration_are_removed(tmp_path: Path, corpus: Path, small_units: None) -> None:
    store = tmp_path / "store"
    prepare(data_config(store, [{"path": str(corpus)}]), num_processes=1)
    prepare(data_config(store, [{"path": str(corpus), "end": 0.2}]), num_processes=1)
    on_disk = {str(path.relative_to(store)) for path in store.glob("*/*/*.arrow")}
    assert on_disk == {part.file for part in read_manifest(store).train[0].parts}


def test_shards_make_the_same_store(tmp_path: Path, corpus: Path, small_units: None) -> None:
    whole = data_config(tmp_path / "whole", [{"path": str(corpus)}], tokenizer=BPE)
    sharded = data_config(tmp_path / "sharded", [{"path": str(corpus)}], tokenizer=BPE)
    prepare(whole, num_processes=1)
    for number in (3, 1):
        prepare(sharded, shard=(number, 3), num_processes=1)
    with pytest.raises(DataError, match=r"4 of 11 parts are missing.*train/0/part-00001\.arrow.*run their shards"):
        prepare(sharded, merge=True)
    assert not (tmp_path / "sharded/manifest.json").exists()
    prepare(sharded, shard=(2, 3), num_processes=1)
    prepare(sharded, merge=True)
    assert store_contents(tmp_path / "whole") == store_contents(tmp_path / "sharded")


def test_the_last_of_several_shards_makes_the_store(tmp_path: Path, corpus: Path, small_units: None) -> None:
    whole = data_config(tmp_path / "whole", [{"path": str(corpus)}], tokenizer=BPE)
    sharded = data_config(tmp_path / "sharded", [{"path": str(corpus)}], tokenizer=BPE)
    prepare(whole, num_processes=1)
    for number in (3, 1):
        prepare(sharded, shard=(number, 3), merge=True, num_processes=1)
        assert not (tmp_path / "sharded/manifest.json").exists()
    prepare(sharded, shard=(2, 3), merge=True, num_processes=1)
    assert store_contents(tmp_path / "whole") == store_contents(tmp_path / "sharded")
    (tmp_path / "sharded/manifest.json").unlink()
    prepare(sharded, shard=(1, 3), merge=True, num_processes=1)  # killed before it had merged, and started again
    assert store_contents(tmp_path / "whole") == store_contents(tmp_path / "sharded")


def test_a_given_tokenizer_is_used_as_it_is(tmp_path: Path, corpus: Path) -> None:
    given = tmp_path / "given.json"
    Tokenizer.train(data_config(tmp_path, [{"path": "x"}], tokenizer=BPE).data.tokenizer, [TEXT]).save(given)
    config = data_config(tmp_path / "store", [{"path": str(corpus)}], tokenizer={"kind": "pretrained", "path": str(given)})
    prepare(config, num_processes=1)
    assert read_manifest(tmp_path / "store").tokenizer_fingerprint == Tokenizer.load(given).fingerprint
    assert text_of(tmp_path / "store") == corpus.read_text()


def test_preparing_and_opening_a_store_need_no_tensorflow() -> None:
    program = "import sys, trainer.data.prepare, trainer.data.store; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
    program = "import sys, trainer.data.manifest; sys.exit('pyarrow' in sys.modules or 'tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def start_prepare(config: Config) -> subprocess.Popen[bytes]:
    """A process of its own that prepares with small units and two workers, until it is done or killed."""
    program = (
        "import sys; from trainer.config import Config; from trainer.data import sources, prepare\n"
        "if __name__ == '__main__':\n"
        f"    sources.UNIT_BYTES = {SMALL_UNIT_BYTES}\n"
        "    prepare.prepare(Config.model_validate_json(sys.argv[1]), num_processes=2)\n"
    )
    arguments = [sys.executable, "-c", program, config.model_dump_json()]
    return subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, small_units: None) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", 2_500_000)
    whole = data_config(tmp_path / "whole", [{"path": str(corpus)}], tokenizer=BPE)
    killed = data_config(tmp_path / "killed", [{"path": str(corpus)}], tokenizer=BPE)
    assert start_prepare(whole).wait() == 0
    process = start_prepare(killed)
    first_record = tmp_path / "killed/train/0/part-00000.json"
    deadline = time.monotonic() + 60
    while not first_record.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.random() * 0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # The workers die by themselves.
    finished = {path: path.with_suffix(".arrow").stat().st_mtime_ns for path in first_record.parent.glob("*.json")}
    assert finished
    assert start_prepare(killed).wait() == 0
    assert store_contents(tmp_path / "whole") == store_contents(tmp_path / "killed")
    assert finished == {path: path.with_suffix(".arrow").stat().st_mtime_ns for path in finished}
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", 20_000_000)
    process = start_prepare(data_config(tmp_path / "store", [{"path": str(corpus)}]))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while len(workers := children.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def bad_inputs() -> dict[str, tuple[bytes, str, str]]:
    """By name: the second file of a corpus, its format, and what the complaint must say."""
    return {
        "not UTF-8": (b"good\n" + b"caf\xe9\n", "text", "b.txt:2: byte 0xe9 at offset 8 is not UTF-8"),
        "not JSON": (b'{"text": "a"}\n{"text": \n', "jsonl", "b.txt:2: is not JSON"),
        "no such field": (b'{"body": "a"}\n', "jsonl", "has no field 'text'; it has body"),
        "no such column": (b"id,body\n1,2\n", "csv", "has no column 'text'; it has id, body"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_named_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    bad, file_format, expected = bad_inputs()[name]
    good = {"text": b"good\n", "jsonl": b'{"text": "good"}\n', "csv": b"id,text\n1,good\n"}[file_format]
    (tmp_path / "a.txt").write_bytes(good * 100)
    (tmp_path / "b.txt").write_bytes(bad)
    with pytest.raises(DataError) as caught:
        prepare(data_config(tmp_path / "store", [{"path": str(tmp_path / "*.txt")}], file_format=file_format))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("content", "file_format"),
    [(b"", "text"), (b"\n \n", "lines"), (b"id\ttext\n", "tsv"), (gzip.compress(b"", mtime=0), "text")],
)
def test_a_corpus_without_text_is_refused(tmp_path: Path, content: bytes, file_format: str) -> None:
    path = tmp_path / ("a.gz" if content[:1] == b"\x1f" else "a.txt")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.train\[0\]\.path: .* holds no text; check the path"):
        prepare(data_config(tmp_path / "store", [{"path": str(path)}], file_format=file_format))
    assert not (tmp_path / "store").exists()


def test_missing_files_and_tokenizers_are_refused(tmp_path: Path, corpus: Path) -> None:
    good, bad = {"path": str(corpus)}, {"path": str(tmp_path / "no.txt")}
    pretrained = {"kind": "pretrained", "path": str(tmp_path / "no.json")}
    for config, expected in (
        (data_config(tmp_path / "store", [good], (bad,)), r"data\.validation\[0\]\.path: no such file"),
        (data_config(tmp_path / "store", [good], tokenizer=pretrained), r"no\.json: cannot be read"),
        (data_config(corpus / "store", [good]), r"corpus\.txt/store: cannot be written"),
    ):
        with pytest.raises(DataError, match=expected):
            prepare(config)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_a_store_that_is_damaged_is_refused_by_name(tmp_path: Path, corpus: Path) -> None:
    store = tmp_path / "store"
    config = data_config(store, [{"path": str(corpus)}])
    with pytest.raises(DataError, match=r"manifest\.json: no such file.*run: drumline prepare CONFIG"):
        open_samples(config, "train")
    prepare(config, num_processes=1)
    with pytest.raises(DataError, match=r"was made with tokenizer .* the model's is 0123456789ab"):
        open_samples(config, "train", fingerprint="0123456789abcdef")
    with pytest.raises(DataError, match=r"has no validation data; give data\.validation"):
        open_samples(config, "validation")
    part = store / "train/0/part-00000.arrow"
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    TokenStore(store, "train")
    with pytest.raises(DataError, match=r"part-00000\.arrow: its contents have changed"):
        TokenStore(store, "train", verify=True)
    part.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"part-00000\.arrow: has [0-9,]+ bytes, the store's manifest says"):
        TokenStore(store, "train")
    prepare(config, num_processes=1)
    assert text_of(store) == corpus.read_text()
    part.unlink()
    with pytest.raises(DataError, match=r"part-00000\.arrow: no such file, though the store's manifest lists it"):
        TokenStore(store, "train")


def test_a_manifest_of_another_version_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    for content, expected in (
        ("{", "cannot be read"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "damaged"),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=expected):
            read_manifest(tmp_path)


def test_documents_keep_their_bounds(tmp_path: Path) -> None:
    texts = ["first", "second document", "third"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = data_config(
        tmp_path / "store",
        [{"path": str(tmp_path / "a.jsonl")}],
        file_format="jsonl",
        options={"sequence_length": 20, "pack": False},
    )
    prepare(config)
    assert read_manifest(tmp_path / "store").num_documents("train") == 3
    (samples,) = open_samples(config, "train")
    arrays = samples.gather(np.arange(3), np.arange(3))
    tokenizer = Tokenizer.load(tmp_path / "store/tokenizer.json")
    assert [tokenizer.decode(row.tolist()) for row in arrays["inputs"]] == texts
    assert [int((row >= 0).sum()) for row in arrays["targets"]] == [len(text) for text in texts]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for num_bytes in (20_000_000, 120_000_000):
        corpus = write_corpus(tmp_path / "corpus.txt", num_bytes)
        config = data_config(tmp_path / f"store-{num_bytes}", [{"path": str(corpus)}], tokenizer=BPE)
        program = (
            "import resource, sys; from trainer.config import Config; from trainer.data.prepare import prepare\n"
            "if __name__ == '__main__':\n"
            "    prepare(Config.model_validate_json(sys.argv[1]), num_processes=2)\n"
            "    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)\n"
            "    print(max(resource.getrusage(each).ru_maxrss for each in who))\n"
        )
        # By way of a shell: what is started from here directly begins with this process's own peak.
        arguments = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", program, config.model_dump_json()]
        printed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        peaks.append(int(printed) / 1024)
    print(f"peak memory of a process in MiB, for 20 MB and 120 MB of text: {peaks}")
    assert peaks[1] < 1.15 * peaks[0] + 20
