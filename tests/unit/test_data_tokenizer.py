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
from trainer.data.tokenizer import SpecialTokens, Tokenizer
from trainer.errors import DataError

ROOT = Path(__file__).parents[2]
BPE = TokenizerConfig(kind="bpe", vocabulary_size=600)
WORDPIECE = TokenizerConfig(kind="wordpiece", vocabulary_size=600)
CHARACTER = TokenizerConfig(kind="character")
WORD = TokenizerConfig(kind="word", vocabulary_size=600, lowercase=True)
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


def test_words_are_the_most_frequent_ones_and_ties_go_by_the_alphabet() -> None:
    texts = ["The cat, the dog; the END!", "a cat. b a", "é É"]
    tokenizer = Tokenizer.train(WORD, texts)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"]
    vocabulary = json.loads(tokenizer.json_text)["model"]["vocab"]
    words = ["the", "a", "cat", "é", "!", ",", ".", ";", "b", "dog", "end"]
    assert sorted(vocabulary, key=lambda word: vocabulary[word]) == [*specials, *words]
    assert tokenizer.decode(tokenizer.encode("The dog, a cat!")) == "the dog , a cat !"
    assert tokenizer.encode("zebra") == [tokenizer.specials.unknown]
    cased = Tokenizer.train(TokenizerConfig(kind="word", vocabulary_size=300), texts)
    assert cased.encode("The")[0] != cased.encode("the")[0]


def test_words_beyond_the_vocabulary_s_size_are_unknown() -> None:
    tokenizer = Tokenizer.train(WORD, [TEXT[:200_000]])
    assert tokenizer.vocabulary_size == 600
    assert tokenizer.specials.unknown in tokenizer.encode(TEXT[:10_000])


def test_lower_case_keeps_accents() -> None:
    tokenizer = Tokenizer.train(WORDPIECE.model_copy(update={"lowercase": True}), [TEXT[:200_000], "Größe größe"])
    assert tokenizer.decode(tokenizer.encode("The Statement GRÖßE")) == "the statement größe"


@pytest.mark.parametrize("config", [WORDPIECE, WORD], ids=lambda config: config.kind)
def test_specials_of_bert_have_tokens_of_their_own(config: TokenizerConfig) -> None:
    assert Tokenizer.train(config, [TEXT[:50_000]]).specials == SpecialTokens(
        end_of_text=5, begin=2, separator=3, padding=0, mask=4, unknown=1
    )


def test_specials_that_a_tokenizer_lacks_are_the_end_of_text_or_none(tmp_path: Path) -> None:
    assert Tokenizer.train(BPE, [TEXT[:50_000]]).specials == SpecialTokens(0, 0, 0, 0, mask=None, unknown=None)
    assert Tokenizer.train(CHARACTER, ["abc"]).specials == SpecialTokens(4, 4, 4, 4, mask=None, unknown=3)
    # As T5 has it.
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    model.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).specials == SpecialTokens(1, begin=1, separator=1, padding=0, mask=None, unknown=2)


def continuing(tokenizer: Tokenizer) -> set[str]:
    vocabulary = json.loads(tokenizer.json_text)["model"]["vocab"]
    return {token for token, number in vocabulary.items() if tokenizer.continues_word[number]}


def test_tokens_that_go_on_with_a_word_are_known() -> None:
    wordpiece = Tokenizer.train(WORDPIECE, [TEXT[:100_000]])
    vocabulary = json.loads(wordpiece.json_text)["model"]["vocab"]
    assert continuing(wordpiece) == {token for token in vocabulary if token.startswith("##")}
    assert wordpiece.continues_word.shape == (wordpiece.vocabulary_size,)
    assert not continuing(Tokenizer.train(WORD, [TEXT[:100_000]]))
    bpe = Tokenizer.train(BPE, [TEXT[:100_000], "naïve naïve 語 語"])
    found = continuing(bpe)
    assert {"a", "ing", "7", chr(0x100 + 33 + 34 - 1)} <= found  # the last stands for the byte 0x80
    assert not {"Ġthe", ".", ",", "Ċ", "<|endoftext|>", "Ġ"} & found
    assert continuing(Tokenizer.train(CHARACTER, ["ab, c."])) == {"a", "b", "c"}


@pytest.mark.parametrize("config", [BPE, WORDPIECE, WORD, CHARACTER], ids=lambda config: config.kind)
def test_offsets_are_of_characters_and_without_spaces_before(config: TokenizerConfig) -> None:
    text = "naïve 🥁 words,\n and the statements"
    tokenizer = Tokenizer.train(config, [TEXT[:100_000], text])
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert len(ids) == len(offsets)
    covered = {place for begin, end in offsets for place in range(begin, end)}
    assert covered >= {place for place, character in enumerate(text) if not character.isspace()}
    assert all(begin == end or not text[begin].isspace() for begin, end in offsets)
    if config.kind != "character":
        begin = text.index("the ")
        assert (begin, begin + 3) in offsets


@pytest.mark.parametrize("config", [BPE, WORDPIECE, WORD, CHARACTER], ids=lambda config: config.kind)
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
