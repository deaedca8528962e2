"""Tokenizers give back the text they were given, are the same every time, and say what they lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from tests.unit.data_corpora import TEXT
from trainer.config import TokenizerConfig
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError

ROOT = Path(__file__).parents[2]
BPE = TokenizerConfig(kind="bpe", vocabulary_size=600)
WORDPIECE = TokenizerConfig(kind="wordpiece", vocabulary_size=600)
CHARACTER = TokenizerConfig(kind="character")
SAMPLE = "  Two words,\n\n\ta tab\r\nand an end <|endoftext|> in [SEP] text: naïve 語 🥁 \n"


@pytest.mark.parametrize("config", [BPE, CHARACTER], ids=lambda config: config.kind)
def test_decoding_gives_back_the_text(config: TokenizerConfig) -> None:
    tokenizer = Tokenizer.train(config, [TEXT[:200_000], SAMPLE])
    ids = tokenizer.encode(SAMPLE)
    assert tokenizer.decode(ids) == SAMPLE
    assert tokenizer.end_of_text not in ids
    assert tokenizer.encode_batch([SAMPLE, ""])[0].tolist() == ids


def test_bpe_encodes_any_text_though_trained_on_another() -> None:
    tokenizer = Tokenizer.train(BPE, [TEXT[:200_000]])
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE
    assert tokenizer.vocabulary_size == 600


def test_character_ids_follow_the_code_points_and_unknown_ones_are_marked() -> None:
    tokenizer = Tokenizer.train(CHARACTER, ["ba\n", "c a"])
    assert tokenizer.vocabulary_size == 5 + 2
    assert tokenizer.encode("\n abc") == [0, 1, 2, 3, 4]
    assert tokenizer.encode("z") == [5]
    assert tokenizer.end_of_text == 6


def test_wordpiece_knows_bert_s_special_tokens_and_splits_words() -> None:
    tokenizer = Tokenizer.train(WORDPIECE, [TEXT[:200_000]])
    vocabulary = json.loads(tokenizer.json_text)["model"]["vocab"]
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"} <= set(vocabulary)
    assert tokenizer.vocabulary_size == 600
    assert tokenizer.decode(tokenizer.encode("the statement unstatements")) == "the statement unstatements"


@pytest.mark.parametrize("config", [BPE, WORDPIECE, CHARACTER], ids=lambda config: config.kind)
def test_training_is_the_same_in_another_process(config: TokenizerConfig) -> None:
    program = (
        "from tests.unit.data_corpora import TEXT; from trainer.config import TokenizerConfig;"
        "from trainer.data.tokenizer import Tokenizer;"
        f"print(Tokenizer.train(TokenizerConfig(**{config.model_dump()!r}), [TEXT[:100_000]]).fingerprint)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == Tokenizer.train(config, [TEXT[:100_000]]).fingerprint


def test_a_saved_tokenizer_is_the_same_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(BPE, [TEXT[:50_000]])
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded == tokenizer
    assert loaded.encode(SAMPLE) == tokenizer.encode(SAMPLE)


def test_the_fingerprint_does_not_depend_on_white_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(CHARACTER, ["abc"])
    (tmp_path / "compact.json").write_text(json.dumps(json.loads(tokenizer.json_text)))
    assert Tokenizer.load(tmp_path / "compact.json").fingerprint == tokenizer.fingerprint


def test_a_tokenizer_from_elsewhere_ends_documents_in_its_own_way(tmp_path: Path) -> None:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1, "[SEP]": 2, "?": 3}, unk_token="?"))
    model.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path / "tokenizer.json").end_of_text == 1


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    model.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"no token that ends a document; looked for <\|endoftext\|>, </s>"):
        Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [b"not json", b"{}", b"\xff\xfe"])
def test_what_is_not_a_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json.*tokenizer\.json"):
        Tokenizer.load(path)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        Tokenizer.load(tmp_path / "nowhere.json")
