"""Text to token ids and back: trained here, or read from a `tokenizer.json`. Everything about one is in that file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from trainer.config import TokenizerConfig
from trainer.errors import DataError
from trainer.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
UNKNOWN_CHARACTER = "<unknown>"
BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", END_OF_TEXT)

# Of a script with more characters the rarer ones become [UNK]; the limit is that of BERT's own trainer.
MAXIMUM_ALPHABET = 1_000

# What tokenizers from elsewhere call the token that ends a document, the most telling first.
END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")

# The trainer takes its texts in blocks of 256 and holds one block in memory; cut short, these stay small, and the words
# it counts are the same.
TRAINING_TEXT_LENGTH = 16 * 2**10


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer; `json_text` is the whole of it. Text that looks like a special token is encoded as text."""

    json_text: str = field(repr=False)
    vocabulary_size: int
    end_of_text: int
    fingerprint: str
    _model: tokenizers.Tokenizer = field(repr=False, compare=False)

    @staticmethod
    def train(config: TokenizerConfig, documents: Iterable[str]) -> Tokenizer:
        """Trains a tokenizer of the kind that `config` says; the same texts always give the same one.

        WordPiece goes through the texts twice, so an iterator that is used up by the first time will not do.
        """
        assert iter(documents) is not documents
        if config.kind == "character":
            model = _train_character(documents)
        elif config.kind == "wordpiece":
            model = _train_wordpiece(documents, config.vocabulary_size or 0)
        else:
            model = _train_bpe(documents, config.vocabulary_size or 0)
        return _from_json(model.to_str(pretty=True), "the tokenizer just trained")

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Reads a `tokenizer.json`; raises DataError where that is not one or has no token that ends a document."""
        try:
            json_text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise DataError(f"{path}: cannot be read as a tokenizer.json ({reason}); check the path") from None
        return _from_json(json_text, str(path))

    def save(self, path: Path) -> None:
        write_atomically(path, self.json_text.encode())

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any that would mark its begin or end."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; special tokens have none."""
        text: str = self._model.decode(list(ids), skip_special_tokens=True)
        return text


def _from_json(json_text: str, name: str) -> Tokenizer:
    try:
        model = tokenizers.Tokenizer.from_str(json_text)
        canonical = json.dumps(json.loads(json_text), sort_keys=True, separators=(",", ":"))
    except Exception as error:  # The Rust library raises nothing narrower.
        raise DataError(f"{name}: is not a tokenizer.json ({' '.join(str(error).split())}); check the path") from None
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    found = [number for token in END_OF_TEXT_NAMES if (number := model.token_to_id(token)) is not None]
    if not found:
        raise DataError(f"{name}: has no token that ends a document; looked for {', '.join(END_OF_TEXT_NAMES)}: add one")
    # Tokens that were added later may leave gaps: what counts is how many rows the embedding needs.
    vocabulary_size = max(model.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(json_text, vocabulary_size, found[0], hashlib.sha256(canonical.encode()).hexdigest(), model)


def _train_bpe(documents: Iterable[str], vocabulary_size: int) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding with GPT-2's rule for words (Radford et al. 2019): any text can be encoded."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(_cut_short(documents), trainer)
    return model


def _train_wordpiece(documents: Iterable[str], vocabulary_size: int) -> tokenizers.Tokenizer:
    """WordPiece as BERT has it, cased (Devlin et al. 2019, arXiv:1810.04805).

    The trainer numbers characters within words ("##a") as it meets them in a hash table and breaks ties by number, so
    that no two trainings agree. Given beforehand, as if they were special tokens, they have a fixed number.
    """
    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(documents, normalizer, min(MAXIMUM_ALPHABET, vocabulary_size // 4))
    inner = [f"##{character}" for character in alphabet if len(pre_tokenizer.pre_tokenize_str(f"a{character}a")) == 1]
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*BERT_SPECIAL_TOKENS, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(_cut_short(documents), trainer)
    model = tokenizers.Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    model.add_special_tokens(list(BERT_SPECIAL_TOKENS))
    model.normalizer = normalizer
    model.pre_tokenizer = pre_tokenizer
    model.decoder = decoders.WordPiece()
    return model


def _alphabet(documents: Iterable[str], normalizer: normalizers.Normalizer, limit: int) -> list[str]:
    """The most frequent characters (of equally frequent ones those of lower code point), in order of code point."""
    counts = Counter[str]()
    for text in documents:
        counts.update(text)
    normalized = Counter[str]()
    for character, count in counts.items():
        for result in normalizer.normalize_str(character).split():
            normalized[result] += count
    return sorted(sorted(normalized, key=lambda character: (-normalized[character], character))[:limit])


def _train_character(documents: Iterable[str]) -> tokenizers.Tokenizer:
    """A token for each character there is, in the order of their code points, then the two special ones."""
    characters: set[str] = set()
    for text in documents:
        characters.update(text)
    vocabulary = {character: number for number, character in enumerate(sorted(characters))}
    for special in (UNKNOWN_CHARACTER, END_OF_TEXT):
        vocabulary[special] = len(vocabulary)
    model = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_CHARACTER))
    model.add_special_tokens([UNKNOWN_CHARACTER, END_OF_TEXT])
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    model.decoder = decoders.Fuse()
    return model


def _cut_short(documents: Iterable[str]) -> Iterator[str]:
    """Cuts long texts after line ends (or, in a line that is longer, anywhere)."""
    return chain.from_iterable(_short_texts(text) for text in documents)


def _short_texts(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        end = len(text)
        if end - begin > TRAINING_TEXT_LENGTH:
            end = text.rfind("\n", begin, begin + TRAINING_TEXT_LENGTH) + 1 or begin + TRAINING_TEXT_LENGTH
        yield text[begin:end]
        begin = end
