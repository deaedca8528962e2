"""Reads tokenizers made elsewhere: a `tokenizer.json`, or the vocabulary files that came before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from trainer.data.tokenizer_training import BERT_SPECIAL_TOKENS, END_OF_TEXT
from trainer.encryption.files import PLAIN, Encryption
from trainer.errors import DataError

# Vocabulary and merges of a byte-level BPE: as Hugging Face names them, and as OpenAI did.
BYTE_LEVEL_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
BYTE_LEVEL_SPECIAL_TOKENS = (END_OF_TEXT, "<s>", "</s>", "<pad>", "<unk>", "<mask>")
SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def read_tokenizer(path: Path, encryption: Encryption = PLAIN) -> str:
    """The `tokenizer.json` of a file or a folder; of a folder with older files, the one that says the same.

    A file is encrypted, or not, as `encryption` has it; what lies in folders never is. In a folder `tokenizer.json` goes before
    BERT's `vocab.txt`, and that before a byte-level BPE. Raises DataError where there is none of these, or only SentencePiece's
    own format.
    """
    if not path.is_dir():
        if path.name in SENTENCEPIECE_FILES:
            raise _sentencepiece(path)
        return _read(path, encryption)
    if (path / "tokenizer.json").exists():
        return _read(path / "tokenizer.json")
    if (path / "vocab.txt").exists():
        return _wordpiece_of(path)
    for vocabulary, merges in BYTE_LEVEL_FILES:
        if (path / vocabulary).exists() and (path / merges).exists():
            return _byte_level_of(path / vocabulary, path / merges)
    for name in SENTENCEPIECE_FILES:
        if (path / name).exists():
            raise _sentencepiece(path / name)
    expected = "tokenizer.json, vocab.txt, vocab.json with merges.txt, or encoder.json with vocab.bpe"
    raise DataError(f"{path}: has no tokenizer in it; looked for {expected}: check the path")


def _read(path: Path, encryption: Encryption = PLAIN) -> str:
    try:
        return encryption.read_bytes(path, path.name).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"{path}: cannot be read as a {path.name} ({reason}); check the path") from None


def _sentencepiece(path: Path) -> DataError:
    return DataError(
        f"{path}: is in SentencePiece's own format, which does not say how text is normalized before it as a tokenizer.json "
        "does; convert it: transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
    )


def _wordpiece_of(folder: Path) -> str:
    """BERT's WordPiece (Devlin et al. 2019); `tokenizer_config.json` says what is lower-cased, which is the default."""
    path = folder / "vocab.txt"
    tokens = _read(path).split("\n")
    # A last line end begins no token; neither does the carriage return of files that were made on Windows belong to one.
    tokens = [token.rstrip("\r") for token in (tokens[:-1] if tokens[-1] == "" else tokens)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if "[UNK]" not in vocabulary:
        raise DataError(f"{path}: has no token [UNK], so it is not the vocabulary of a BERT; check the path")
    settings = _settings(folder / "tokenizer_config.json")
    model = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    model.add_special_tokens([token for token in BERT_SPECIAL_TOKENS if token in vocabulary])
    return str(model.to_str(pretty=True))


def _byte_level_of(vocabulary_path: Path, merges_path: Path) -> str:
    """Byte-pair encoding as GPT-2 has it (Radford et al. 2019)."""
    vocabulary = _object(vocabulary_path)
    lines = [line.rstrip("\r") for line in _read(merges_path).split("\n")]
    merges = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#version")]
    try:
        model = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # The Rust library raises nothing narrower.
        reason = " ".join(str(error).split())
        raise DataError(f"{merges_path}: does not go with {vocabulary_path.name} ({reason}); check both files") from None
    settings = _settings(vocabulary_path.with_name("tokenizer_config.json"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([token for token in BYTE_LEVEL_SPECIAL_TOKENS if token in vocabulary])
    return str(model.to_str(pretty=True))


def _settings(path: Path) -> dict[str, Any]:
    return _object(path) if path.exists() else {}


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); check the file") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: got a JSON {type(content).__name__}, expected an object; check the file")
    return content
