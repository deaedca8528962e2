"""From texts to texts: what the model reads of each, batches of a few shapes, and what it wrote as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config import ENCODER_DECODERS, Config, GenerationConfig
from trainer.data.assembly import first_target_token, read_prompt
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError, UserError
from trainer.generation.compiled import compile_generation
from trainer.generation.settings import settle, stop_tokens
from trainer.models.blocks import Weights
from trainer.step import PRECISIONS

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]

SHORTEST = 16  # tokens that the rows of a batch have at least


@dataclass(frozen=True)
class Written:
    """A text that was written, of how many tokens, without the one that ended it, and what that was."""

    text: str
    num_tokens: int
    finish: Literal["end_of_text", "stop", "max_tokens"]


class Writer:
    """Continues, translates or summarizes, with the weights as they are."""

    def __init__(self, config: Config, weights: Weights, tokenizer: Tokenizer, generation: GenerationConfig) -> None:
        """Raises UserError where the options contradict each other or leave no room for what is to be read."""
        self.generation = settle(config, generation)
        self._config, self._tokenizer = config, tokenizer
        self._is_encoder_decoder = config.model.family in ENCODER_DECODERS
        self._max_tokens = self.generation.max_tokens or 0
        self._length = config.data.sequence_length
        self._prompt = None if config.task == "language_modeling" else read_prompt(config, tokenizer)
        self._room = self._length - (0 if self._is_encoder_decoder else self._max_tokens)
        if self._prompt is not None and self._prompt.num_tokens >= self._room:
            raise UserError(
                f"--max-tokens: got {self._max_tokens}, and data.prompt takes {self._prompt.num_tokens}: that leaves no room "
                f"for a source in data.sequence_length, {self._length}; ask for fewer tokens"
            )
        begin = first_target_token(config, tokenizer.specials)
        ends = stop_tokens(tokenizer, self.generation.stop)
        dtype = PRECISIONS[config.train.precision]
        self._generate = compile_generation(config.model, weights, dtype, self.generation, begin, ends)

    def read(self, tokens: Tokens, name: str) -> npt.NDArray[np.int32]:
        """What the model reads of a text's tokens: of a source with the prompt around it, and cut at its end.

        `name` is for the complaint, a DataError, that a language model's prompt is too long: there the end matters most.
        """
        if self._prompt is not None:
            return self._prompt.around(np.asarray(tokens), self._room)
        if len(tokens) > self._room:
            raise DataError(
                f"{name} has {len(tokens)} tokens, and --max-tokens is {self._max_tokens}: together more than "
                f"the model's {self._length}; shorten the prompt or ask for fewer tokens"
            )
        return np.array(tokens if len(tokens) else [self._tokenizer.end_of_text], np.int32)

    def numbers(self, row: int) -> npt.NDArray[np.float32]:
        """The random numbers that the text `row` is drawn with [max_tokens]."""
        stream = np.random.Generator(np.random.Philox(key=[self.generation.seed, row]))
        return stream.random(self._max_tokens, np.float32)

    def write(
        self, read: Sequence[npt.NDArray[np.int32]], numbers: Sequence[npt.NDArray[np.float32]] | None = None
    ) -> list[Written]:
        """What comes after each of at most `batch_size` texts, of which `read` gave the tokens. Texts are drawn with `numbers`
        or, without them, are the likeliest."""
        batch_size = self.generation.batch_size
        assert 0 < len(read) <= batch_size
        length = padded_length(max(map(len, read)), self._length)
        tokens = np.full((batch_size, length), self._tokenizer.end_of_text, np.int32)
        lengths, limits = np.ones(batch_size, np.int32), np.ones(batch_size, np.int32)
        uniform = np.zeros((batch_size, self._max_tokens), np.float32)
        for row, each in enumerate(read):
            place = slice(0, len(each)) if self._is_encoder_decoder else slice(length - len(each), length)
            tokens[row, place] = each
            lengths[row], limits[row] = len(each), self._max_tokens
            if numbers is not None:
                uniform[row] = numbers[row]
        written = self._generate(*map(tf.constant, (tokens, lengths, limits, uniform))).numpy()
        return [self._written(row) for row in written[: len(read)].tolist()]

    def _written(self, tokens: list[int]) -> Written:
        end_of_text = self._tokenizer.end_of_text
        is_ended = end_of_text in tokens
        kept = tokens[: tokens.index(end_of_text)] if is_ended else tokens
        text = self._tokenizer.decode(kept)
        stops = [place for stop in self.generation.stop if (place := text.find(stop)) >= 0]
        if stops:
            return Written(text[: min(stops)], len(kept), "stop")
        return Written(text, len(kept), "end_of_text" if is_ended else "max_tokens")


def padded_length(longest: int, limit: int) -> int:
    """The tokens that rows are padded to: 16, 24, 32, 48, 64, 96 ... but no more than `limit`, so that there are few graphs."""
    length = SHORTEST
    while length < longest:
        length = length * 3 // 2 if length & (length - 1) == 0 else length * 4 // 3
    return max(longest, min(length, limit))
