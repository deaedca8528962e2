"""Trains tokenizers: byte-pair encoding, WordPiece, words, characters. The same texts always give the same one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from trainer.config import TokenizerConfig

END_OF_TEXT = "<|endoftext|>"
UNKNOWN_CHARACTER = "<unknown>"
BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", END_OF_TEXT)

# Of a script with more characters the rarer ones become [UNK]; the limit is that of BERT's own trainer.
MAXIMUM_ALPHABET = 1_000

# The trainer takes its texts in blocks of 256 and holds one block in memory; cut short, these stay small, and the words
# it counts are the same.
TRAINING_TEXT_LENGTH = 16 * 2**10


def train_model(config: TokenizerConfig, documents: Iterable[str]) -> tokenizers.Tokenizer:
    """Trains a tokenizer of the kind that `config` says.

    WordPiece goes through the texts twice, so an iterator that is used up by the first time will not do.
    """
    assert iter(documents) is not documents
    if config.kind == "character":
        return _train_character(documents)
    if config.kind == "wordpiece":
        return _train_wordpiece(documents, config.vocabulary_size or 0, config.lowercase)
    if config.kind == "word":
        return _train_word(documents, config.vocabulary_size or 0, config.lowercase)
    return _train_bpe(documents, config.vocabulary_size or 0)


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


def _train_wordpiece(documents: Iterable[str], vocabulary_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """WordPiece as BERT has it (Devlin et al. 2019, arXiv:1810.04805); accents stay also where capitals do not.

    The trainer numbers characters within words ("##a") as it meets them in a hash table and breaks ties by number, so
    that no two trainings agree. Given beforehand, as if they were special tokens, they have a fixed number.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
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


def _train_word(documents: Iterable[str], vocabulary_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """The most frequent words and marks of punctuation, as BERT tells them apart; of equally frequent ones those that
    come first by code point (the trainer's own rule). All others are [UNK]."""
    model = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocabulary_size, special_tokens=list(BERT_SPECIAL_TOKENS), show_progress=False
    )
    # Without a decoder tokens are joined with spaces.
    model.train_from_iterator(_cut_short(documents), trainer)
    return model


def _alphabet(documents: Iterable[str], normalizer: normalizers.Normalizer, limit: int) -> list[str]:
    """The most frequent characters (of equally frequent ones those of lower code point), in order of code point."""
    counts = Counter[str]()
    for text in documents:
        counts.update(text)
    normalized = Counter[str]()
    for character, count in counts.items():
        for result in "".join(normalizer.normalize_str(character).split()):
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
