"""The tokenizer of a store that is being prepared: the one that is there, or one that is trained or taken from elsewhere."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import Config
from trainer.data.manifest import TOKENIZER_NAME
from trainer.data.parts import PartPlan, texts_of
from trainer.data.store import store_tokenizer
from trainer.data.store_plan import StorePlan, tokenizer_source
from trainer.data.tokenizer import Tokenizer
from trainer.encryption.files import Encryption, is_encrypted_file
from trainer.errors import DataError, UserError
from trainer.files import json_bytes, write_atomically

logger = logging.getLogger(__name__)

# BPE and WordPiece learn from at most so many characters, taken from the beginnings of all units alike: more text
# hardly changes which words are frequent. A character tokenizer sees all of the text.
TRAINING_CHARACTERS = 256 * 2**20

# Says what the tokenizer in the store was trained on.
TOKENIZER_SOURCE_NAME = "tokenizer-source.json"


@dataclass(frozen=True)
class TrainingTexts:
    """The texts a tokenizer learns from; can be gone through again."""

    parts: Sequence[PartPlan]
    characters_per_part: int | None

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            num_left = self.characters_per_part
            for text in texts_of(part):
                yield text if num_left is None else text[:num_left]
                if num_left is not None and (num_left := num_left - len(text)) <= 0:
                    break


def current_tokenizer(store: Path, config: Config, plan: StorePlan) -> Tokenizer | None:
    """The store's tokenizer if it is the one that the configuration asks for, or would train from the inputs now."""
    wanted = None if config.data.tokenizer.path is None else Tokenizer.load(Path(config.data.tokenizer.path))
    path = store / TOKENIZER_NAME
    if not path.exists() or is_encrypted_file(path) != config.security.encrypt:
        return None
    if wanted is not None:
        return wanted if store_tokenizer(config).fingerprint == wanted.fingerprint else None
    try:
        source = json.loads((store / TOKENIZER_SOURCE_NAME).read_bytes())
        return store_tokenizer(config) if source == {"sha256": tokenizer_source(config, plan, TRAINING_CHARACTERS)} else None
    except (OSError, ValueError, DataError):
        return None


def new_tokenizer(store: Path, config: Config, plan: StorePlan) -> Tokenizer:
    """Trains the tokenizer, or takes the one the configuration names, and puts it into the store."""
    before = _fingerprint_before(config)
    started = time.monotonic()
    if config.data.tokenizer.path is not None:
        tokenizer = Tokenizer.load(Path(config.data.tokenizer.path))
    else:
        parts = plan.train_parts
        limit = None if config.data.tokenizer.kind == "character" else max(1, TRAINING_CHARACTERS // len(parts))
        logger.info("training a %s tokenizer on %s", config.data.tokenizer.kind, _training_extent(limit, len(parts)))
        tokenizer = Tokenizer.train(config.data.tokenizer, TrainingTexts(parts, limit))
    # The tokenizer first: were it interrupted in between, the next run would train it again.
    tokenizer.save(store / TOKENIZER_NAME, Encryption.of(config.security))
    write_atomically(store / TOKENIZER_SOURCE_NAME, json_bytes({"sha256": tokenizer_source(config, plan, TRAINING_CHARACTERS)}))
    seconds = time.monotonic() - started
    logger.info(
        "tokenizer of %d tokens, fingerprint %s, in %.1f s",
        tokenizer.vocabulary_size,
        tokenizer.fingerprint[:12],
        seconds,
    )
    if before not in (None, tokenizer.fingerprint):
        logger.info("%s: the tokenizer is another one than before, so all parts are made again", store)
    return tokenizer


def _fingerprint_before(config: Config) -> str | None:
    """Of the tokenizer that is in the store already, whole and to be opened."""
    try:
        return store_tokenizer(config).fingerprint
    except UserError:
        return None


def _training_extent(limit: int | None, num_parts: int) -> str:
    return (
        "all training text" if limit is None else f"up to {limit:,} characters from each of {num_parts} units of training text"
    )
