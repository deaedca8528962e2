"""Measures generation with the key/value cache against reading the whole text again for each token.

    python benchmarks/generation_speed.py [--rounds 5] [--shape 6,384,6,8192] [--batch 8] [--prompt 16] [--tokens 128]

The shape is layers, width, heads, vocabulary of a GPT with random weights. Both generate greedily, in graphs of static shapes,
and must write the same tokens. Without the cache a graph reads as many tokens as there are, rounded up to 16 (shapes that fit
exactly would be a graph for each token), and computes the scores of the last one alone. Rounds alternate; printed are the
medians, and that of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from trainer.config import GenerationConfig, ModelConfig
from trainer.generation import compile_generation
from trainer.models import blocks, gpt
from trainer.models.parameters import parameters

NO_TOKEN = -1  # ends no text: all become as long as asked for
MULTIPLE = 16
BAR = 5.0

Weights = Mapping[str, tf.Variable]
Contestant = Callable[[], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default="6,384,6,8192")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    num_layers, width, num_heads, vocabulary_size = (int(number) for number in arguments.shape.split(","))
    model = ModelConfig(num_layers=num_layers, width=width, num_heads=num_heads)
    weights = _random_weights(model, vocabulary_size, arguments.prompt + arguments.tokens)
    prompts = np.random.default_rng(1).integers(0, vocabulary_size, (arguments.batch, arguments.prompt), np.int32)
    contestants: dict[str, Contestant] = {
        "with cache": _with_cache(model, weights, prompts, arguments.tokens),
        "without": _without_cache(model, weights, prompts, arguments.tokens),
    }
    first = {name: generate() for name, generate in contestants.items()}  # compiles
    same = float((first["with cache"] == first["without"]).mean())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, generate in contestants.items():
            began = time.perf_counter()
            generate()
            seconds[name].append(time.perf_counter() - began)

    print(
        f"shape {arguments.shape}, {arguments.batch} texts, {arguments.tokens} tokens after {arguments.prompt}; "
        f"{same:.1%} of them the same"
    )
    for name, each in seconds.items():
        print(f"  {name:10} {arguments.batch * arguments.tokens / statistics.median(each):10.1f} tokens/s")
    ratios = [slow / fast for slow, fast in zip(seconds["without"], seconds["with cache"], strict=True)]
    print(f"  ratio      {statistics.median(ratios):10.2f}  ({min(ratios):.2f} ... {max(ratios):.2f}); the bar is {BAR:g}")


def _random_weights(model: ModelConfig, vocabulary_size: int, length: int) -> Weights:
    generator = np.random.default_rng(0)
    return {
        name: tf.Variable(generator.normal(float(each.initializer == "ones"), 0.05, each.shape), dtype=tf.float32)
        for name, each in parameters(model, vocabulary_size, length).items()
    }


def _with_cache(model: ModelConfig, weights: Weights, prompts: np.ndarray, num_tokens: int) -> Contestant:
    generate = compile_generation(model, weights, tf.float32, GenerationConfig(temperature=0.0), 0, (NO_TOKEN,))
    batch, length = prompts.shape
    arguments = (
        tf.constant(prompts),
        tf.fill((batch,), length),
        tf.fill((batch,), num_tokens),
        tf.zeros((batch, num_tokens)),
    )
    return lambda: generate(*arguments).numpy()


def _without_cache(model: ModelConfig, weights: Weights, prompts: np.ndarray, num_tokens: int) -> Contestant:
    batch, prompt_length = prompts.shape
    whole = prompt_length + num_tokens

    @tf.function(autograph=False)
    def fill(texts_BT: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
        """Writes the places from `first` to `end`, the last of a row."""

        def body(place: tf.Tensor, texts_BT: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            x_BTD = gpt.hidden_states(model, weights, texts_BT)
            last_B1D = blocks.normalize(model, weights, "final_norm", tf.gather(x_BTD, [place - 1], axis=1))
            scores_BV = blocks.token_scores(blocks.TokenOutput(last_B1D, weights["token_embedding"]))[:, 0]
            chosen_B = tf.argmax(scores_BV, -1, tf.int32)
            return place + 1, tf.where(tf.range(texts_BT.shape[1]) == place, chosen_B[:, None], texts_BT)

        return tf.while_loop(lambda place, texts: place < end, body, (first, texts_BT))[1]

    def generate() -> np.ndarray:
        texts, place = prompts, prompt_length
        while place < whole:
            # Graphs for 16, 32, 48 ... places; what is not written yet is not looked at.
            length = min(whole, -(-(place + 1) // MULTIPLE) * MULTIPLE)
            padded = np.zeros((batch, length), np.int32)
            padded[:, :place] = texts
            texts, place = fill(tf.constant(padded), tf.constant(place), tf.constant(length)).numpy(), length
        return texts[:, prompt_length:]

    return generate


if __name__ == "__main__":
    main()
