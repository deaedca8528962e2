"""Encoding by words gives what the tokenizer gives for whole texts, and is left to tokenizers that divide text so."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from tests.unit.data_corpora import TEXT
from trainer.config import TokenizerConfig
from trainer.data import word_cache
from trainer.data.tokenizer import Tokenizer
from trainer.data.tokenizer_training import train_model
from trainer.data.word_cache import WordCache, divides_by_words

BPE = TokenizerConfig(kind="bpe", vocabulary_size=600)
# Whitespace of all kinds, what is whitespace to Python alone, contractions, and what is joined with a space before it.
SPACES = (" ", "  ", "\n", "\n\n", "\t", "\r\n", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u3000", "\u2028", "\u200b")
PIECES = (*SPACES, "a", "and", "'s", "'", "12", "!", "?!", "<|endoftext|>", "\xe9", "e\u0301", "語", "\x00")


@pytest.fixture(scope="module")
def model() -> tokenizers.Tokenizer:
    return train_model(BPE, [TEXT[:50_000]])


def test_texts_of_words_have_the_tokens_of_whole_texts(model: tokenizers.Tokenizer) -> None:
    draw = random.Random(1)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(30))) for _ in range(5_000)] + TEXT[:50_000].splitlines() + [TEXT]
    expected = [encoding.ids for encoding in model.encode_batch_fast(texts, add_special_tokens=False)]
    cache = WordCache(model)
    for _ in range(2):  # At the second time all words are known.
        assert [ids.tolist() for ids in cache.encode_batch(texts)] == expected


def test_a_full_cache_begins_anew(model: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MAXIMUM_CHARACTERS", 100)
    texts = TEXT[:20_000].splitlines()
    expected = [encoding.ids for encoding in model.encode_batch_fast(texts, add_special_tokens=False)]
    cache = WordCache(model)
    assert [cache.encode_batch([text])[0].tolist() for text in texts] == expected
    assert len(cache._numbers) < 100


def test_no_text_has_no_tokens(model: tokenizers.Tokenizer) -> None:
    assert [len(ids) for ids in WordCache(model).encode_batch(["", ""])] == [0, 0]
    assert WordCache(model).encode_batch([]) == []


def _content(model: tokenizers.Tokenizer) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(model.to_str())
    return content


def test_tokenizers_that_do_not_divide_text_so_are_left_alone(model: tokenizers.Tokenizer) -> None:
    assert divides_by_words(_content(model))

    def changed(**parts: Any) -> tokenizers.Tokenizer:
        other = tokenizers.Tokenizer.from_str(model.to_str())
        for name, part in parts.items():
            setattr(other, name, part)
        return other

    assert not divides_by_words(_content(changed(normalizer=normalizers.NFD())))
    assert not divides_by_words(_content(changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))))
    assert not divides_by_words(
        _content(changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)))
    )
    assert not divides_by_words(_content(changed(pre_tokenizer=pre_tokenizers.Whitespace())))
    added = changed()
    added.add_tokens(["of the"])
    assert not divides_by_words(_content(added))
    dropping = tokenizers.Tokenizer(models.BPE(dropout=0.1))
    dropping.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert not divides_by_words(_content(dropping))


def test_only_tokenizers_that_divide_text_so_keep_words() -> None:
    assert Tokenizer.train(BPE, [TEXT[:50_000]])._words is not None
    assert Tokenizer.train(TokenizerConfig(kind="wordpiece", vocabulary_size=600), [TEXT[:50_000]])._words is None
