"""Generation against what it is defined by: no cache, all texts there are, one row at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import ENCODER_DECODERS, GenerationConfig, ModelConfig
from trainer.generation import compile_generation
from trainer.models import encoder_decoder, gpt
from trainer.models.blocks import Weights
from trainer.models.parameters import parameters

pytestmark = pytest.mark.usefixtures("tensorflow")

END, PADDING, VOCABULARY_SIZE, LENGTH = 0, 1, 6, 16
SMALL: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "width": 16}
MODELS = {
    "gpt2": ModelConfig(**SMALL),
    "rotary": ModelConfig(**SMALL, positions="rotary", num_key_value_heads=1, normalization="rms_norm"),
    "t5": ModelConfig(family="t5", **SMALL),
    "encoder_decoder": ModelConfig(family="encoder_decoder", **SMALL, num_decoder_layers=2),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
PROMPTS = [[2, 3, 4], [5], [3, 3, 2, 4, 5], [4, 2]]


def random_weights(model: ModelConfig, seed: int = 0) -> Weights:
    generator = np.random.default_rng(seed)
    return {
        name: tf.constant(generator.normal(float(weight.initializer == "ones"), 0.5, weight.shape), tf.float32)
        for name, weight in parameters(model, VOCABULARY_SIZE, LENGTH).items()
    }


def write(
    model: ModelConfig,
    weights: Weights,
    generation: GenerationConfig,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    num_tokens: int = 5,
    limits: Sequence[int] | None = None,
    uniform: np.ndarray | None = None,
    ends: tuple[int, ...] = (END,),
    length: int = 6,
) -> list[list[int]]:
    """The tokens of each row, the end included where it came."""
    tokens = np.full((len(prompts), length), END, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        if model.family in ENCODER_DECODERS:
            row[: len(prompt)] = prompt
        else:
            row[length - len(prompt) :] = prompt
    limits = limits or [num_tokens] * len(prompts)
    uniform = np.zeros((len(prompts), num_tokens)) if uniform is None else uniform
    generate = compile_generation(model, weights, tf.float32, generation, first_token(model), ends)
    written = generate(
        tf.constant(tokens),
        tf.constant([len(prompt) for prompt in prompts]),
        tf.constant(limits),
        tf.constant(uniform, tf.float32),
    )
    return [until_end(row, limit, ends) for row, limit in zip(written.numpy().tolist(), limits, strict=True)]


def first_token(model: ModelConfig) -> int:
    return PADDING if model.family == "t5" else END


def until_end(row: list[int], limit: int, ends: tuple[int, ...]) -> list[int]:
    found = [number for number, token in enumerate(row) if token in ends]
    stop = min([*(number + 1 for number in found), limit])
    assert all(token == END for token in row[stop:])
    return row[:stop]


def log_probabilities(model: ModelConfig, weights: Weights, prompt: Sequence[int], texts: np.ndarray) -> np.ndarray:
    """Of each text's tokens [N, G], by reading all of them at once, without a cache."""
    num_texts, num_tokens = texts.shape
    repeated = tf.constant(np.repeat([prompt], num_texts, 0), tf.int32)
    if model.family in ENCODER_DECODERS:
        inputs = np.concatenate([np.full((num_texts, 1), first_token(model)), texts[:, :-1]], 1)
        source_segments, segments = tf.ones_like(repeated), tf.ones(inputs.shape, tf.int32)
        encoded = encoder_decoder.encode(model, weights, repeated, source_segments)
        logits = encoder_decoder.logits(model, weights, tf.constant(inputs, tf.int32), segments, encoded, source_segments)
    else:
        whole = tf.concat([repeated, tf.constant(texts[:, :-1], tf.int32)], 1)
        logits = gpt.logits(model, weights, whole)[:, len(prompt) - 1 :]
    return tf.gather(tf.nn.log_softmax(logits), tf.constant(texts), batch_dims=2).numpy().reshape(num_texts, num_tokens)


def best_of_all(model: ModelConfig, weights: Weights, prompt: Sequence[int], num_tokens: int, alpha: float) -> list[int]:
    """The text that beam search looks for, by going through all."""
    texts = np.array(list(itertools.product(range(VOCABULARY_SIZE), repeat=num_tokens)))
    values = log_probabilities(model, weights, prompt, texts)
    scores: dict[tuple[int, ...], float] = {}
    for text, value in zip(texts.tolist(), values, strict=True):
        length = text.index(END) + 1 if END in text else num_tokens
        scores[tuple(text[:length])] = value[:length].sum() / ((5 + length) / 6) ** alpha
    ranked = sorted(scores, key=lambda each: -scores[each])
    assert scores[ranked[0]] - scores[ranked[1]] > 1e-5, "the two best are too close for a test"
    return list(ranked[0])


def greedily(model: ModelConfig, weights: Weights, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Without a cache: all that there is so far is read again for each token."""
    text: list[int] = []
    while len(text) < num_tokens and END not in text:
        tried = np.array([[*text, token] for token in range(VOCABULARY_SIZE)])
        text.append(int(log_probabilities(model, weights, prompt, tried)[:, -1].argmax()))
    return text


@each_model
def test_greedy_texts_are_those_without_a_cache(model: ModelConfig) -> None:
    weights = random_weights(model, 1)
    written = write(model, weights, GenerationConfig(temperature=0.0))
    assert written == [greedily(model, weights, prompt, 5) for prompt in PROMPTS]


@each_model
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_texts(model: ModelConfig, alpha: float) -> None:
    weights = random_weights(model)
    search = GenerationConfig(temperature=0.0, num_beams=VOCABULARY_SIZE**2, length_penalty=alpha)
    found = write(model, weights, search, num_tokens=3)
    assert found == [best_of_all(model, weights, prompt, 3, alpha) for prompt in PROMPTS]


def test_the_length_penalty_decides_between_short_and_long_texts() -> None:
    model = MODELS["gpt2"]
    weights = random_weights(model, 6)  # whose likeliest text is empty, though not by much
    texts = [
        write(model, weights, GenerationConfig(temperature=0.0, num_beams=8, length_penalty=alpha), [[2, 3]])[0]
        for alpha in (0.0, 3.0)
    ]
    assert texts[0] == [END]
    assert len(texts[1]) == 5


@each_model
def test_more_beams_find_texts_that_are_at_least_as_likely(model: ModelConfig) -> None:
    weights = random_weights(model, 3)

    def values(num_beams: int) -> list[float]:
        found = write(model, weights, GenerationConfig(temperature=0.0, num_beams=num_beams, length_penalty=0.0))
        pairs = zip(PROMPTS, found, strict=True)
        return [float(log_probabilities(model, weights, prompt, np.array([text])).sum()) for prompt, text in pairs]

    assert all(wide >= greedy - 1e-5 for greedy, wide in zip(values(1), values(VOCABULARY_SIZE**3), strict=True))


@each_model
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_text_does_not_depend_on_its_batch(model: ModelConfig, num_beams: int) -> None:
    weights = random_weights(model, 1)
    search = GenerationConfig(temperature=0.0, num_beams=num_beams)
    limits = [5, 2, 4, 1]
    together = write(model, weights, search, limits=limits)
    assert write(model, weights, search, [PROMPTS[2]], limits=[limits[2]])[0] == together[2]
    assert write(model, weights, search, limits=limits, num_tokens=9, length=7) == together


def test_a_drawn_text_depends_on_its_own_numbers_alone() -> None:
    model = MODELS["gpt2"]
    weights, drawn = random_weights(model), GenerationConfig(temperature=8.0, top_k=5, top_p=0.95)
    uniform = np.random.default_rng(5).random((4, 5))
    together = write(model, weights, drawn, uniform=uniform)
    alone = [write(model, weights, drawn, [PROMPTS[row]], uniform=uniform[row : row + 1])[0] for row in range(4)]
    assert together == alone
    assert together != write(model, weights, drawn, uniform=np.random.default_rng(6).random((4, 5)))


def test_one_token_of_many_temperatures_is_drawn_in_proportion() -> None:
    model = MODELS["gpt2"]
    weights, count = random_weights(model), 2000
    uniform = (np.arange(count)[:, None] + 0.5) / count
    tried = np.arange(VOCABULARY_SIZE)[:, None]
    for temperature in (0.5, 2.0):
        drawn = GenerationConfig(temperature=temperature)
        written = write(model, weights, drawn, [[2, 3]] * count, num_tokens=1, uniform=uniform)
        shares = np.bincount([text[0] for text in written], minlength=VOCABULARY_SIZE) / count
        expected = np.exp(log_probabilities(model, weights, [2, 3], tried)[:, 0] / temperature)
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=2 / count)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_text_ends_with_any_token_that_ends_one(num_beams: int) -> None:
    model = MODELS["gpt2"]
    for seed in range(3):
        weights = random_weights(model, seed)
        without = write(model, weights, GenerationConfig(temperature=0.0), num_tokens=8)
        stop = without[0][1] if len(without[0]) > 1 else END
        written = write(model, weights, GenerationConfig(temperature=0.0, num_beams=num_beams), num_tokens=8, ends=(END, stop))
        assert all(token not in (END, stop) for text in written for token in text[:-1])
        if num_beams == 1:
            assert written[0] == without[0][: without[0].index(stop) + 1]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation_ends_when_all_rows_have(num_beams: int) -> None:
    """If it went on, it would leave the table of positions, which is an error on a CPU."""
    model = MODELS["gpt2"]
    # Whatever is read, the end is by far the likeliest.
    weights = dict(random_weights(model)) | {
        "final_norm.gain": tf.zeros((16,)),
        "final_norm.bias": tf.ones((16,)),
        "token_embedding": tf.concat([tf.ones((1, 16)), tf.zeros((VOCABULARY_SIZE - 1, 16))], 0),
    }
    search = GenerationConfig(temperature=0.0, num_beams=num_beams)
    assert write(model, weights, search, [[2, 3, 4, 5]] * 2, num_tokens=LENGTH + 4) == [[END]] * 2
    weights["token_embedding"] = tf.reverse(weights["token_embedding"], [0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        write(model, weights, search, [[2, 3, 4, 5]] * 2, num_tokens=LENGTH + 4)
