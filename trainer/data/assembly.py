"""How records become sequences: special tokens, truncation, prompts, windows. No TensorFlow.

Training, `prepare` (which must know how long sequences will be) and prediction put sequences together here alone. They follow
from the task, `model.family`, `data.sequence_length`, `data.target_length`, `data.prompt`, `data.fields.text_b`,
`data.window_overlap` and the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import ENCODER_DECODERS, Config
from trainer.data.records import RecordTable
from trainer.data.tokenizer import SpecialTokens, Tokenizer
from trainer.data.windows import Int32Array, Int64Array, TokenStream
from trainer.errors import ConfigError

Tokens = npt.NDArray[np.integer[Any]]


def capacities(config: Config) -> tuple[int, ...]:
    """The places of a row, by side: what `piece_lengths` must fit into."""
    if config.task in ("translation", "summarization") and config.model.family in ENCODER_DECODERS:
        return config.data.sequence_length, config.target_length
    return (config.data.sequence_length,)


def piece_lengths(config: Config, tokenizer: Tokenizer, data: RecordTable | TokenStream) -> Int64Array:
    """The places that each piece takes, by side [num_pieces, sides]: what best fit packs.

    A piece is a record, truncated; of a stream, what `document_pieces` cuts. An encoder-decoder's pieces have two sides,
    source and target. Where there are back-translations, a piece has room for the longer text.
    Raises ConfigError where `data.prompt` leaves no room.
    """
    if isinstance(data, TokenStream):
        num_specials = num_special_tokens(config)
        _, lengths = document_pieces(data, config.data.sequence_length - num_specials)
        return (lengths + num_specials)[:, None]
    if config.task == "classification":
        lengths = _text_lengths(data, "text")
        second = _text_lengths(data, "text_b") if data.has("text_b") else np.zeros_like(lengths)
        return _classification_lengths(config, lengths, second)[:, None]
    assert config.task in ("translation", "summarization"), f"{config.task} has no pieces to pack"
    prompt = read_prompt(config, tokenizer)
    if config.model.family in ENCODER_DECODERS:
        sources = np.minimum(_text_lengths(data, "source") + prompt.num_tokens, config.data.sequence_length)
        return np.stack([sources, np.minimum(data.lengths("target") + 1, config.target_length)], 1)
    sources, targets = decoder_lengths(config, prompt, data)
    return (prompt.num_tokens + sources + targets)[:, None]


def decoder_lengths(config: Config, prompt: Prompt, table: RecordTable) -> tuple[Int64Array, Int64Array]:
    """What a decoder's sequences keep of their sources and targets [num_records]. The end of text after a target takes no
    place: it is never read."""
    room = config.data.sequence_length - prompt.num_tokens
    return cut_longer(_text_lengths(table, "source"), table.lengths("target"), room)


def num_special_tokens(config: Config) -> int:
    """Those that stand around one text: [CLS] and [SEP] of BERT; none of a language model."""
    return 2 if config.model.family == "bert" else 0


def document_pieces(stream: TokenStream, room: int) -> tuple[Int64Array, Int64Array]:
    """Where each piece of a document begins in the stream, and how many tokens of it are read [num_pieces].

    A document is cut into pieces of `room` tokens; its end-of-text token is not read, it is what comes after the last
    one. So of a language model each token but the first of a document is a target exactly once.
    """
    ends = stream.document_ends()
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    num_read = ends - begins - 1
    num_pieces = -(-num_read // room)
    documents = np.repeat(np.arange(len(ends)), num_pieces)
    numbers = np.arange(len(documents)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    return begins[documents] + numbers * room, np.minimum(room, num_read[documents] - numbers * room)


def cut_longer(first: Int64Array, second: Int64Array, room: int) -> tuple[Int64Array, Int64Array]:
    """The lengths that two texts keep of theirs, so that together they fit: the longer one gives its last token, then
    again, and the second where they are equal (`_truncate_seq_pair` of BERT; Devlin et al. 2019)."""
    cut = np.minimum(first, np.maximum(room - second, -(-room // 2)))
    fits = first + second <= room
    return np.where(fits, first, cut), np.where(fits, second, room - cut)


def cut_pair(first: Tokens, second: Tokens, room: int) -> tuple[Tokens, Tokens]:
    """Two texts, cut as `cut_longer` has it."""
    if len(first) + len(second) <= room:
        return first, second
    kept, kept_second = cut_longer(np.array([len(first)]), np.array([len(second)]), room)
    return first[: int(kept[0])], second[: int(kept_second[0])]


def classification_sequence(
    config: Config, specials: SpecialTokens, text: Tokens, text_b: Tokens | None, room: int | None = None
) -> tuple[Int32Array, Int32Array]:
    """The tokens that are read of one or two texts, and their types: 0, and from the second text on 1.

    BERT reads [CLS] a [SEP] (b [SEP]), a decoder a (b) and the end of text, at which it decides, a bag of embeddings a (b).
    At most `room` tokens, by default a row's.
    """
    room = config.data.sequence_length if room is None else room
    before, after = _around_texts(config, specials)
    num_after = len(after) if text_b is None or config.model.family != "bert" else 2
    left = room - len(before) - num_after
    if text_b is None:
        tokens = np.concatenate([before, text[:left], after], dtype=np.int32)
        return tokens, np.zeros(len(tokens), np.int32)
    text, text_b = cut_pair(text, text_b, left)
    between = after if config.model.family == "bert" else after[:0]
    tokens = np.concatenate([before, text, between, text_b, after], dtype=np.int32)
    types = np.ones(len(tokens), np.int32)
    types[: len(before) + len(text) + len(between)] = 0
    return tokens, types


def _around_texts(config: Config, specials: SpecialTokens) -> tuple[Int32Array, Int32Array]:
    """What stands before the first text, and after each (of BERT) or after all."""
    match config.model.family:
        case "bert":
            return np.array([specials.begin], np.int32), np.array([specials.separator], np.int32)
        case "bag_of_embeddings":
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        case _:
            return np.zeros(0, np.int32), np.array([specials.end_of_text], np.int32)


def _classification_lengths(config: Config, first: Int64Array, second: Int64Array) -> Int64Array:
    """The lengths of what `classification_sequence` makes of texts of these lengths."""
    match config.model.family:
        case "bert":
            num_specials = 2 if config.data.fields.text_b is None else 3
        case "bag_of_embeddings":
            num_specials = 0
        case _:
            num_specials = 1
    return np.minimum(first + second + num_specials, config.data.sequence_length)


def _text_lengths(table: RecordTable, column: str) -> Int64Array:
    lengths = table.lengths(column)
    if column != "text_b" and table.has("back_translation"):
        return np.maximum(lengths, table.lengths("back_translation"))
    return lengths


@dataclass(frozen=True)
class Prompt:
    """What is read before and after a source: `data.prompt`, and the token that ends it."""

    before: Int32Array
    after: Int32Array

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.after)

    def around(self, source: Tokens, room: int) -> Int32Array:
        """At most `room` tokens: of a source that is too long the end is left out."""
        return np.concatenate([self.before, source[: max(0, room - self.num_tokens)], self.after], dtype=np.int32)


def read_prompt(config: Config, tokenizer: Tokenizer) -> Prompt:
    """The prompt of the configuration, as tokens.

    An encoder's source ends with the end-of-text token, as T5's do; so does a decoder's without a prompt with the
    separator, since it must see where the source ends. Raises ConfigError where a prompt leaves no room for a source.
    """
    before, after = (config.data.prompt or "{source}").split("{source}")
    tokens_after = tokenizer.encode(after)
    if config.model.family in ENCODER_DECODERS:
        tokens_after.append(tokenizer.specials.end_of_text)
    elif config.data.prompt is None:
        tokens_after.append(tokenizer.specials.separator)
    prompt = Prompt(np.array(tokenizer.encode(before), np.int32), np.array(tokens_after, np.int32))
    length = config.data.sequence_length
    if prompt.num_tokens + 1 >= length:
        raise ConfigError(
            f"data.prompt: takes {prompt.num_tokens} tokens, which leaves no room for a source in data.sequence_length, "
            f"{length}; shorten the one or raise the other"
        )
    return prompt


def first_target_token(config: Config, specials: SpecialTokens) -> int:
    """What a decoder that looks at an encoder reads before it writes: T5's is padding (Raffel et al. 2020)."""
    return specials.padding if config.model.family == "t5" else specials.end_of_text


@dataclass(frozen=True)
class Window:
    """[CLS] question [SEP] part of the context [SEP]: at `context_place` begins the part that begins with the context's
    token `first_context_token`, of `num_context_tokens`. Types are 0, and from the context on 1."""

    tokens: Int32Array
    types: Int32Array
    first_context_token: int
    context_place: int
    num_context_tokens: int


def question_windows(config: Config, specials: SpecialTokens, question: Tokens, context: Tokens) -> list[Window]:
    """All that is read of a question and its context: at least one window."""
    (count,) = num_question_windows(config, np.array([len(question)]), np.array([len(context)])).tolist()
    return [question_window(config, specials, question, context, number) for number in range(count)]


def num_question_windows(config: Config, questions: Int64Array, contexts: Int64Array) -> Int64Array:
    """How many windows there are of questions and contexts of these lengths."""
    room = config.data.sequence_length - 3 - np.minimum(questions, _question_room(config))
    stride = np.maximum(1, room - config.data.window_overlap)
    return 1 + np.maximum(0, -(-(contexts - room) // stride))


def question_window(config: Config, specials: SpecialTokens, question: Tokens, context: Tokens, number: int) -> Window:
    """The window `number`, from 0. Each shares `data.window_overlap` tokens of the context with the one before it."""
    question = question[: _question_room(config)]
    room = config.data.sequence_length - 3 - len(question)
    begin = number * max(1, room - config.data.window_overlap)
    part = context[begin : begin + room]
    separator = (specials.separator,)
    tokens = np.concatenate([(specials.begin,), question, separator, part, separator], dtype=np.int32)
    place = len(question) + 2
    types = np.ones(len(tokens), np.int32)
    types[:place] = 0
    return Window(tokens, types, begin, place, len(part))


def _question_room(config: Config) -> int:
    """The tokens that a question keeps. Where it can be, windows have room for twice what they share, so that there are few
    of them; but a question has a quarter of the row in any case."""
    length = config.data.sequence_length
    return max(length - 3 - 2 * config.data.window_overlap, length // 4)
