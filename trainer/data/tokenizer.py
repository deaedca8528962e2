"""Text to token ids and back: trained here, or read from elsewhere. Everything about one is in its `tokenizer.json`.

V: vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from trainer.config import TokenizerConfig
from trainer.data.tokenizer_files import read_tokenizer
from trainer.data.tokenizer_training import END_OF_TEXT, UNKNOWN_CHARACTER, train_model
from trainer.data.word_cache import WordCache, divides_by_words
from trainer.encryption.files import PLAIN, Encryption
from trainer.errors import DataError

# What tokenizers from elsewhere call the token that ends a document, the most telling first; and the others.
END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
BEGIN_NAMES = ("[CLS]", "<s>", "<|begin_of_text|>", "<bos>")
SEPARATOR_NAMES = ("[SEP]", "</s>")
PADDING_NAMES = ("[PAD]", "<pad>")
MASK_NAMES = ("[MASK]", "<mask>")
UNKNOWN_NAMES = ("[UNK]", "<unk>", UNKNOWN_CHARACTER)


@dataclass(frozen=True)
class SpecialTokens:
    """The numbers of the tokens that stand for no text. Those that a tokenizer lacks are `end_of_text`; `mask` and
    `unknown`, for which nothing else can stand, None."""

    end_of_text: int
    begin: int
    separator: int
    padding: int
    mask: int | None
    unknown: int | None


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer; `json_text` is the whole of it. Text that looks like a special token is encoded as text."""

    json_text: str = field(repr=False)
    vocabulary_size: int
    specials: SpecialTokens
    fingerprint: str
    _model: tokenizers.Tokenizer = field(repr=False, compare=False)

    @property
    def end_of_text(self) -> int:
        return self.specials.end_of_text

    @staticmethod
    def train(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
        """Trains a tokenizer of the kind that `config` says; the same texts, which are gone through more than once,
        always give the same one."""
        return _from_json(train_model(config, documents).to_str(pretty=True), "the tokenizer just trained")

    @staticmethod
    def load(path: Path, encryption: Encryption = PLAIN) -> Tokenizer:
        """Reads a `tokenizer.json`, or the folder of one or of older vocabulary files; raises DataError where there is no
        such thing or it has no token that ends a document."""
        return _from_json(read_tokenizer(path, encryption), str(path))

    def save(self, path: Path, encryption: Encryption = PLAIN) -> None:
        encryption.write_atomically(path, self.json_text.encode(), path.name)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any that would mark its begin or end."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        if self._words is not None:
            return self._words.encode_batch(texts)
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text, and of each the characters it stands for, begin and end, without spaces before them."""
        encoding = self._model.encode(text, add_special_tokens=False)
        return encoding.ids, [_trimmed(text, begin, end) for begin, end in encoding.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; special tokens have none."""
        text: str = self._model.decode(list(ids), skip_special_tokens=True)
        return text

    @cached_property
    def _words(self) -> WordCache | None:
        return WordCache(self._model) if divides_by_words(json.loads(self.json_text)) else None

    @cached_property
    def continues_word(self) -> npt.NDArray[np.bool_]:
        """Which tokens [V] go on with a word that an earlier one began: "##ing" of WordPiece; of byte-level and
        SentencePiece vocabularies those that begin with a letter or digit and no space."""
        content = json.loads(self.json_text)
        special = {token["id"] for token in content.get("added_tokens", ()) if token["special"]}
        continues = _continuation(content)
        result = np.zeros(self.vocabulary_size, np.bool_)
        for token, number in self._model.get_vocab(with_added_tokens=True).items():
            result[number] = number not in special and continues(token)
        return result


class _Continuation:
    """Says of a token whether it goes on with a word, as the vocabulary's kind has it."""

    def __init__(self, prefix: str | None, bytes_by_character: dict[str, int] | None, never: bool) -> None:
        self._prefix, self._bytes_by_character, self._never = prefix, bytes_by_character, never

    def __call__(self, token: str) -> bool:
        if self._never:
            return False
        if self._prefix:
            return token.startswith(self._prefix) and token != self._prefix
        if self._bytes_by_character is not None:
            data = bytes(self._bytes_by_character.get(character, 0x20) for character in token)
            token = data.decode(errors="replace")
        elif len(token) == 6 and token.startswith("<0x"):
            return token[3] in "89ABCDEF"  # A byte of a character of several, of which all stay together.
        # Letters, digits, marks that go with them, and characters that are not complete.
        return bool(token) and (unicodedata.category(token[0])[0] in "LNM" or token[0] == "\ufffd")


def _continuation(content: dict[str, Any]) -> _Continuation:
    kind = content["model"]["type"]
    pre_tokenizer = json.dumps(content.get("pre_tokenizer"))
    prefix = content["model"].get("continuing_subword_prefix") or None
    if "ByteLevel" in pre_tokenizer or "ByteLevel" in json.dumps(content.get("decoder")):
        return _Continuation(prefix, _bytes_by_character(), never=False)
    # Words of a word-level vocabulary are whole, unless its words are single characters.
    return _Continuation(prefix, None, never=kind == "WordLevel" and "Isolated" not in pre_tokenizer)


def _bytes_by_character() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for: Latin-1's visible characters for themselves, the
    characters from U+0100 on for the other bytes, in order (Radford et al. 2019, `bytes_to_unicode`)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    while begin < end and text[begin].isspace():
        begin += 1
    return begin, end


def _from_json(json_text: str, name: str) -> Tokenizer:
    try:
        model = tokenizers.Tokenizer.from_str(json_text)
        canonical = json.dumps(json.loads(json_text), sort_keys=True, separators=(",", ":"))
    except Exception as error:  # The Rust library raises nothing narrower.
        raise DataError(f"{name}: is not a tokenizer.json ({' '.join(str(error).split())}); check the path") from None
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    # Tokens that were added later may leave gaps: what counts is how many rows the embedding needs.
    vocabulary_size = max(model.get_vocab(with_added_tokens=True).values()) + 1
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    return Tokenizer(json_text, vocabulary_size, _specials(model, name), fingerprint, model)


def _specials(model: tokenizers.Tokenizer, name: str) -> SpecialTokens:
    def find(names: Sequence[str]) -> int | None:
        return next((number for token in names if (number := model.token_to_id(token)) is not None), None)

    end_of_text = find(END_OF_TEXT_NAMES)
    if end_of_text is None:
        raise DataError(f"{name}: has no token that ends a document; looked for {', '.join(END_OF_TEXT_NAMES)}: add one")

    def find_or_end(names: Sequence[str]) -> int:
        number = find(names)
        return end_of_text if number is None else number

    return SpecialTokens(
        end_of_text=end_of_text,
        begin=find_or_end(BEGIN_NAMES),
        separator=find_or_end(SEPARATOR_NAMES),
        padding=find_or_end(PADDING_NAMES),
        mask=find(MASK_NAMES),
        unknown=find(UNKNOWN_NAMES),
    )
