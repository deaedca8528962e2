"""What a masked language model must guess: which tokens are hidden, and what stands in their places. No TensorFlow.

Devlin et al. 2019 (arXiv:1810.04805), section 3.1. T: tokens of a row.
"""

from __future__ import annotations

import numpy as np

from trainer.config import Config
from trainer.data.draws import MASKING_STREAM, generator_of, uniforms
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import NOT_COUNTED, Int32Array, Int64Array
from trainer.errors import ConfigError

# Of the hidden tokens: the rest of them stay as they are.
SHARE_MASKED = 0.8
SHARE_RANDOM = 0.1


def num_hidden(rate: float, num_tokens: int) -> int:
    """How many of so many tokens are hidden. It grows with them, so a full row has the most."""
    return max(1, round(rate * num_tokens))


class Masking:
    """Hides tokens of rows, as a function of the run's seed and a draw."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a tokenizer that has no mask token."""
        specials = tokenizer.specials
        if specials.mask is None:
            raise ConfigError(
                "data.tokenizer: has no mask token ([MASK] or <mask>), which masked language modeling needs; "
                "expected a wordpiece tokenizer, or a pretrained one that has it"
            )
        self._mask = specials.mask
        self._seed = config.run.seed
        self._rate = config.data.masking.rate
        self._most = num_hidden(self._rate, config.data.sequence_length)
        self._continues_word = tokenizer.continues_word if config.data.masking.whole_words else None
        known = (specials.end_of_text, specials.begin, specials.separator, specials.padding, specials.mask, specials.unknown)
        self._is_special = np.zeros(tokenizer.vocabulary_size, np.bool_)
        self._is_special[[number for number in known if number is not None and number != specials.unknown]] = True
        self._substitutes = np.flatnonzero(~self._is_special).astype(np.int32)

    def hide(self, tokens: Int32Array, draw: int) -> Int32Array:
        """Hides some of `tokens` [T] where they stand, and returns what they were: the targets [T], -1 for the others.

        Of n tokens that are not special, the rate times n are hidden, rounded, and one at least. With whole words it is
        at most so many: those words of a random order that still fit. Only where none fits does a longer one go beyond it,
        up to what a full row has.
        """
        targets = np.full(len(tokens), NOT_COUNTED, np.int32)
        candidates = np.flatnonzero(~self._is_special[tokens])
        if not len(candidates):
            return targets
        generator = generator_of(self._seed, MASKING_STREAM, draw)
        count = num_hidden(self._rate, len(candidates))
        if self._continues_word is None:
            ranks = uniforms(generator, len(candidates))
            places = candidates[np.argpartition(ranks, count - 1)[:count]]
            places.sort()
        else:
            places = self._whole_words(tokens, candidates, count, generator)
        targets[places] = tokens[places]
        kinds, choices = uniforms(generator, 2 * len(places)).reshape(2, -1)
        substitutes = self._substitutes[(choices * len(self._substitutes)).astype(np.int64)]
        is_random = kinds >= 1.0 - SHARE_RANDOM
        tokens[places] = np.where(kinds < SHARE_MASKED, self._mask, np.where(is_random, substitutes, tokens[places]))
        return targets

    def _whole_words(self, tokens: Int32Array, candidates: Int64Array, count: int, generator: np.random.Philox) -> Int64Array:
        assert self._continues_word is not None
        follows = np.diff(candidates, prepend=-2) == 1
        firsts = np.flatnonzero(~(follows & self._continues_word[tokens[candidates]]))
        lengths = np.diff(firsts, append=len(candidates)).tolist()
        order = np.argsort(uniforms(generator, len(firsts)), kind="stable").tolist()
        chosen, left = [], count
        for word in order:
            if lengths[word] <= left:
                chosen.append(word)
                left -= lengths[word]
                if not left:
                    break
        if not chosen:
            word = order[0]
            return candidates[firsts[word] :][: min(lengths[word], self._most)]
        parts = [candidates[firsts[word] : firsts[word] + lengths[word]] for word in sorted(chosen)]
        return np.concatenate(parts)
