"""`drumline predict`: continues texts with a run's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.checkpoint import choose_checkpoint, read_weights
from trainer.config import DistributionConfig, SamplingConfig
from trainer.data.tokenizer import Tokenizer
from trainer.distribution import connect
from trainer.errors import DataError
from trainer.generation import compile_generation
from trainer.run_directory import open_run
from trainer.step import PRECISIONS, create_weights
from trainer.weights import assign_weights

PROMPT_LENGTH_MULTIPLE = 16  # prompts are padded to it, so that few lengths need a graph of their own


def predict_run(path: Path, prompts: Iterable[str], sampling: SamplingConfig, checkpoint: str) -> Iterator[dict[str, Any]]:
    """Yields, for each prompt in order, `sampling.samples` continuations: prompt, text, sample, num_tokens, and `finish`,
    which is `end_of_text` or `max_tokens`.

    A prompt is read once it is needed, so they may come from a pipe. Raises UserError where the run or the checkpoint is
    not there, or a prompt with what shall follow is longer than the model's sequences.
    """
    run, config = open_run(path)
    chosen = choose_checkpoint(run.checkpoints, checkpoint, config.checkpoint.best_metric)
    tokenizer = Tokenizer.load(run.tokenizer)
    connect(DistributionConfig(backend="single"))
    weights = create_weights(config, tokenizer.vocabulary_size)
    assign_weights(weights, read_weights(chosen), str(chosen))
    dtype = PRECISIONS[config.train.precision]
    generate = compile_generation(config.model, weights, dtype, sampling, tokenizer.end_of_text)

    rows = _rows(prompts, tokenizer, sampling, config.data.sequence_length)
    while batch := list(islice(rows, sampling.batch_size)):
        encoded = [tokens for _, _, tokens, _ in batch]
        uniform = np.stack([numbers for _, _, _, numbers in batch])
        generated = generate(*_rectangle(encoded, uniform, sampling.batch_size, tokenizer.end_of_text)).numpy()
        for (prompt, sample, _, _), tokens in zip(batch, generated.tolist(), strict=False):
            ended = tokenizer.end_of_text in tokens
            kept = tokens[: tokens.index(tokenizer.end_of_text)] if ended else tokens
            yield {
                "prompt": prompt,
                "sample": sample,
                "text": tokenizer.decode(kept),
                "num_tokens": len(kept),
                "finish": "end_of_text" if ended else "max_tokens",
            }


def _rows(
    prompts: Iterable[str], tokenizer: Tokenizer, sampling: SamplingConfig, sequence_length: int
) -> Iterator[tuple[str, int, list[int], np.ndarray]]:
    """Prompt, number of the sample, tokens, and the random numbers that the continuation is drawn with."""
    for number, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt) or [tokenizer.end_of_text]
        if len(tokens) + sampling.max_tokens > sequence_length:
            raise DataError(
                f"prompt {number + 1} has {len(tokens)} tokens, and --max-tokens is {sampling.max_tokens}: together more than "
                f"the model's {sequence_length}; shorten the prompt or ask for fewer tokens"
            )
        for sample in range(sampling.samples):
            stream = np.random.Generator(np.random.Philox(key=[sampling.seed, number * sampling.samples + sample]))
            yield prompt, sample, tokens, stream.random(sampling.max_tokens, np.float32)


def _rectangle(
    encoded: Sequence[Sequence[int]], uniform: np.ndarray, batch_size: int, end_of_text: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Prompts padded in front to a common length, their lengths, and the random numbers; always `batch_size` rows."""
    longest = max(len(tokens) for tokens in encoded)
    length = -(-longest // PROMPT_LENGTH_MULTIPLE) * PROMPT_LENGTH_MULTIPLE
    prompts = np.full((batch_size, length), end_of_text, np.int32)
    lengths = np.ones(batch_size, np.int32)
    numbers = np.zeros((batch_size, uniform.shape[1]), np.float32)
    for row, tokens in enumerate(encoded):
        prompts[row, length - len(tokens) :] = tokens
        lengths[row] = len(tokens)
        numbers[row] = uniform[row]
    return tf.constant(prompts), tf.constant(lengths), tf.constant(numbers)
