"""The loss, spans and metrics of question answering."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import example_config, example_table, example_texts, example_tokenizer
from trainer.data.records import RecordTable
from trainer.data.samples.question_answering import QuestionSamples
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

TOKENIZER = example_tokenizer()
CONFIG = example_config("question_answering", "bert", window_overlap=4, answer_length=3, train={"label_smoothing": 0.1})


def letters(count: int) -> str:
    return "".join(chr(ord("a") + number % 26) for number in range(count))


def question_table(lengths: tuple[int, ...], answers: list[list[int]]) -> RecordTable:
    """Contexts of which each token is one letter, and the first and last token of each answer."""
    texts = [letters(length) for length in lengths]
    return example_table(
        1,
        context=example_texts(lengths),
        question=example_texts([2] * len(lengths), seed=4),
        context_offsets=[[bound for token in range(n) for bound in (token, token + 1)] for n in lengths],
        answer=answers,
        context_text=texts,
        answers=[json.dumps([text[each[0] : each[1] + 1]] if each else []) for text, each in zip(texts, answers, strict=True)],
    )


def example(tf: ModuleType) -> tuple[QuestionSamples, dict[str, Any], dict[str, Any], np.ndarray]:
    """Samples, weights, features (the last row is padding) and logits [B, T, 2]."""
    from trainer.models import bert

    samples = QuestionSamples(CONFIG, question_table((40, 6), [[10, 11], []]), TOKENIZER)
    indices = np.append(np.arange(samples.num_samples), -1)
    features = {name: tf.constant(array) for name, array in samples.gather(indices, indices).items()}
    generator = np.random.default_rng(0)
    parameters = run_parameters(CONFIG, Sizes(TOKENIZER.vocabulary_size))
    weights = {name: tf.constant(generator.normal(0, 0.5, each.shape), tf.float32) for name, each in parameters.items()}
    x = bert.hidden_states(CONFIG.model, weights, features["inputs"], features["segments"], features["types"])
    return samples, weights, features, (x @ weights["span.kernel"] + weights["span.bias"]).numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_over_the_context_and_the_first_token(tensorflow: ModuleType, smoothing: float) -> None:
    from trainer.models.blocks import DropoutKey
    from trainer.tasks.question_answering import QuestionAnswering

    samples, weights, features, logits = example(tensorflow)
    losses = []
    for row in range(samples.num_samples):
        allowed = np.append(0, np.flatnonzero(features["context_mask"][row].numpy()))
        for side, name in enumerate(("start", "end")):
            chosen = logits[row, allowed, side]
            logs = chosen - np.log(np.exp(chosen).sum())
            right = logs[allowed.tolist().index(int(features[name][row, 0]))]
            losses.append(-((1 - smoothing) * right + smoothing * logs.mean()) / 2)
    key = DropoutKey(tensorflow.constant([1, 1], tensorflow.int64), tensorflow.constant(0, tensorflow.int64))
    task = QuestionAnswering(CONFIG)
    loss_sum, count = task.loss_sums(weights, features, key if smoothing else None)
    np.testing.assert_allclose(loss_sum, sum(losses), rtol=1e-4)
    assert float(count) == samples.num_samples


def test_the_best_span_lies_in_the_context_and_is_short_enough(tensorflow: ModuleType) -> None:
    from trainer.tasks.question_answering import QuestionAnswering

    samples, weights, features, logits = example(tensorflow)
    _, outputs = QuestionAnswering(CONFIG).evaluate(weights, features)
    for row in range(samples.num_samples):
        allowed = np.flatnonzero(features["context_mask"][row].numpy()).tolist()
        spans = {(a, b): logits[row, a, 0] + logits[row, b, 1] for a in allowed for b in allowed if a <= b < a + 3}
        best = max(spans, key=lambda span: spans[span])
        assert tuple(outputs["span"][row].numpy().tolist()) == best
        np.testing.assert_allclose(outputs["score"][row], spans[best], rtol=1e-4)
        np.testing.assert_allclose(outputs["null_score"][row], logits[row, 0].sum(), rtol=1e-4)
    again = QuestionAnswering(CONFIG).best_spans(weights, features)
    assert all(np.array_equal(again[name], outputs[name]) for name in outputs)


def outputs_of(samples: QuestionSamples, answers: dict[int, tuple[str, float]], null_score: float) -> dict[str, np.ndarray]:
    """As if the model had found these texts, by sample, with these scores, and elsewhere the first token with none."""
    outputs = {
        "span": np.zeros((samples.num_samples, 2), np.int32),
        "score": np.full(samples.num_samples, -9.0, np.float32),
        "null_score": np.full(samples.num_samples, null_score, np.float32),
    }
    arrays = samples.gather(np.arange(samples.num_samples), np.arange(samples.num_samples))
    for index in range(samples.num_samples):
        places = np.flatnonzero(arrays["context_mask"][index]).tolist()
        text, score = answers.get(index, (samples.text_at(index, places[0], places[0]), -9.0))
        outputs["span"][index] = next((a, b) for a in places for b in places if a <= b and samples.text_at(index, a, b) == text)
        outputs["score"][index] = score
    return outputs


def test_of_all_windows_of_a_question_the_best_answers(tensorflow: ModuleType) -> None:
    from trainer.tasks.question_answering import QuestionAnswering

    # Two data sets: the first has a question of three windows, and both one of a single window.
    first = QuestionSamples(CONFIG, question_table((40, 6), [[20, 21], [0, 1]]), TOKENIZER)
    second = QuestionSamples(CONFIG, question_table((8,), [[3, 4]]), TOKENIZER)
    num_windows = int(first.num_windows[0])
    assert num_windows > 1
    holding = next(i for i in range(num_windows) if first.gather(np.array([i]), np.array([i]))["start"][0, 0] > 0)
    found = [
        outputs_of(first, {holding: ("uv", 3.0), num_windows: ("ab", 1.0)}, 0.0),
        outputs_of(second, {0: ("ef", 1.0)}, 0.0),
    ]
    outputs = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    task, ids = QuestionAnswering(CONFIG), np.arange(first.num_samples + second.num_samples)
    metrics = task.metrics(outputs, [first, second], ids)
    assert metrics["exact_match"] == pytest.approx(200 / 3)
    # Of a question that not all windows were read of, nothing is known.
    kept = ids != 0
    metrics = task.metrics({name: each[kept] for name, each in outputs.items()}, [first, second], ids[kept])
    assert metrics["exact_match"] == pytest.approx(50.0)


def test_a_question_without_an_answer_is_right_where_every_window_says_none(tensorflow: ModuleType) -> None:
    from trainer.tasks.question_answering import QuestionAnswering

    samples = QuestionSamples(CONFIG, question_table((8, 6), [[3, 4], []]), TOKENIZER)
    outputs = outputs_of(samples, {0: ("de", 3.0), 1: ("a", 1.0)}, null_score=2.0)
    metrics = QuestionAnswering(CONFIG).metrics(outputs, [samples], np.arange(2))
    assert metrics == {"exact_match": 100.0, "f1": 100.0}
