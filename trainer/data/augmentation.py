"""Changes to training texts (`data.augmentation`), as a function of the run's seed and a draw. No TensorFlow.

Texts are changed before anything is put around them, so special tokens are never touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import AugmentationConfig, Config
from trainer.data.draws import AUGMENTATION_STREAM, MIXUP_STREAM, Float64Array, generator_of, uniforms
from trainer.data.input_files import text_lines
from trainer.data.sources import Span
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import Int64Array
from trainer.errors import ConfigError, DataError

Tokens = npt.NDArray[np.integer[Any]]


class TextAugmentation:
    """Changes texts of one configuration. `generator` begins a sample's random numbers, which its texts share in order."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for span masking without a mask token, DataError for a file of replacements that is damaged."""
        self._options = config.data.augmentation
        self._seed = config.run.seed
        self._mask = tokenizer.specials.mask
        if self._options.span_masking and self._mask is None:
            raise ConfigError(
                "data.augmentation.span_masking: the tokenizer has no mask token ([MASK] or <mask>) to put there; "
                "use another augmentation, or a tokenizer that has it"
            )
        self._replacements: Replacements | None = None
        if self._options.replacements is not None:
            self._replacements = Replacements(Path(self._options.replacements), tokenizer)

    @property
    def mixup(self) -> float:
        """The parameter of mixup's Beta distribution; 0 is none."""
        return self._options.mixup

    def generator(self, draw: int) -> np.random.Philox:
        return generator_of(self._seed, AUGMENTATION_STREAM, draw)

    def change(self, tokens: Tokens, generator: np.random.Philox, back_translation: Tokens | None = None) -> Tokens:
        """The text as training reads it this time: a new array, or the given one where nothing is changed.

        An empty `back_translation` is none. Of a text that has tokens, at least one stays.
        """
        options = self._options
        if options.back_translation:
            chosen = uniforms(generator, 1)[0] < options.back_translation
            if chosen and back_translation is not None and len(back_translation):
                tokens = back_translation
        if options.replacement and self._replacements is not None:
            tokens = self._replacements.replace(tokens, options.replacement, generator)
        if not len(tokens):
            return tokens
        if options.token_swap:
            tokens = swap_tokens(tokens, options.token_swap, generator)
        if options.token_dropout:
            tokens = drop_tokens(tokens, options.token_dropout, generator)
        if options.span_masking:
            assert self._mask is not None
            tokens = mask_spans(tokens, options, self._mask, generator)
        return tokens

    def mix(self, draws: Int64Array, num_samples: int) -> tuple[Int64Array, Float64Array]:
        """For each sample with whom it is mixed, any of all, and its own share [B], of a symmetric Beta distribution."""
        generators = [generator_of(self._seed, MIXUP_STREAM, draw) for draw in draws.tolist()]
        partners = [int(uniforms(generator, 1)[0] * num_samples) for generator in generators]
        shares = [np.random.Generator(generator).beta(self.mixup, self.mixup) for generator in generators]
        return np.array(partners, np.int64), np.array(shares, np.float64)


def swap_tokens(tokens: Tokens, share: float, generator: np.random.Philox) -> Tokens:
    """Swaps neighbours: each token is one of a pair, from the first token on or from the second, and so many pairs swap."""
    first = int(uniforms(generator, 1)[0] * 2)
    left = np.arange(first, len(tokens) - 1, 2)
    left = left[uniforms(generator, len(left)) < share]
    swapped = tokens.copy()
    swapped[left], swapped[left + 1] = tokens[left + 1], tokens[left]
    return swapped


def drop_tokens(tokens: Tokens, share: float, generator: np.random.Philox) -> Tokens:
    """Leaves out each token with this probability; one stays."""
    numbers = uniforms(generator, len(tokens))
    kept = numbers >= share
    kept[np.argmax(numbers)] = True
    return tokens[kept]


def mask_spans(tokens: Tokens, options: AugmentationConfig, mask: int, generator: np.random.Philox) -> Tokens:
    """Cuts the text into spans, the first of them shorter by chance, and masks each with the probability `span_masking`."""
    offset = int(uniforms(generator, 1)[0] * options.span_length)
    spans = (np.arange(len(tokens)) + offset) // options.span_length
    is_masked = uniforms(generator, int(spans[-1]) + 1) < options.span_masking
    return np.where(is_masked[spans], np.array(mask, tokens.dtype), tokens)


class Replacements:
    """What may stand for which words, as tokens, with a space before it and without, as the tokenizer tells these apart."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        """Reads lines of a word, a tab, and words that may stand for it, separated by commas; raises DataError for others."""
        self._continues_word = tokenizer.continues_word
        self._choices: dict[tuple[int, ...], list[list[int]]] = {}
        self._begins = np.zeros(tokenizer.vocabulary_size, np.bool_)
        self._most_words = 1
        for word, choices in _read_replacements(path).items():
            for space in ("", " "):
                tokens = tuple(tokenizer.encode(space + word))
                if tokens:
                    self._choices.setdefault(tokens, [tokenizer.encode(space + choice) for choice in choices])
                    self._begins[tokens[0]] = True
                    self._most_words = max(self._most_words, len(self._word_begins(np.array(tokens))))

    def _word_begins(self, tokens: Tokens) -> Int64Array:
        begins = ~self._continues_word[tokens]
        begins[:1] = True
        return np.flatnonzero(begins)

    def replace(self, tokens: Tokens, share: float, generator: np.random.Philox) -> Tokens:
        """Replaces each word that the file has, whole, with this probability; of several words in a row the most."""
        begins = self._word_begins(tokens)
        bounds = [*begins.tolist(), len(tokens)]
        parts: list[Tokens] = []
        done = 0
        for number in np.flatnonzero(self._begins[tokens[begins]]).tolist():
            begin = bounds[number]
            found = self._longest(tokens, bounds, number) if begin >= done else None
            if found is None:
                continue
            end, choices = found
            whether, which = uniforms(generator, 2)
            if whether < share:
                parts += [tokens[done:begin], np.array(choices[int(which * len(choices))], tokens.dtype)]
                done = end
        return np.concatenate([*parts, tokens[done:]]) if parts else tokens

    def _longest(self, tokens: Tokens, bounds: list[int], number: int) -> tuple[int, list[list[int]]] | None:
        """Where the longest text ends that begins at a word and has replacements, and these."""
        for last in range(min(number + self._most_words, len(bounds) - 1), number, -1):
            choices = self._choices.get(tuple(tokens[bounds[number] : bounds[last]].tolist()))
            if choices:
                return bounds[last], choices
        return None


def _read_replacements(path: Path) -> dict[str, list[str]]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"data.augmentation.replacements: {path} cannot be read ({error.strerror}); check the path") from None
    found: dict[str, list[str]] = {}
    for number, (_, line) in enumerate(text_lines(Span(str(path), size, 0, 0, size)), 1):
        if not line.strip():
            continue
        word, tab, others = line.partition("\t")
        choices = [choice.strip() for choice in others.split(",") if choice.strip()]
        if not tab or not word.strip() or not choices:
            raise DataError(
                f"{path}:{number}: got {line[:40]!r}, expected a word, a tab, and what may stand for it, separated by commas"
            )
        found.setdefault(word.strip(), choices)
    if not found:
        raise DataError(f"{path}: has no replacements; expected lines of a word, a tab, and what may stand for it")
    return found
