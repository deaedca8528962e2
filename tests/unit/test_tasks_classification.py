"""The losses and outputs of classification, held against their formulas."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import example_classification, example_config, example_table, example_texts, example_tokenizer
from trainer.config import Config
from trainer.data.windows import Arrays
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

TOKENIZER = example_tokenizer()
LENGTHS = (3, 9, 1, 5, 4, 2)


def example(tf: ModuleType, config: Config, num_labels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights, and the features of six texts and a row of padding."""
    is_set = config.data.multi_label
    labels = [[n % num_labels, (n + 1) % num_labels] if is_set else [n % num_labels] for n in range(len(LENGTHS))]
    table = example_table(text=example_texts(LENGTHS), labels=labels)
    samples = example_classification(config, table, num_labels)
    arrays: Arrays = samples.gather(np.arange(-1, len(LENGTHS)), np.arange(7))
    generator = np.random.default_rng(0)
    parameters = run_parameters(config, Sizes(TOKENIZER.vocabulary_size, num_labels))
    weights = {name: tf.constant(generator.normal(0, 0.5, each.shape), tf.float32) for name, each in parameters.items()}
    return weights, {name: tf.constant(array) for name, array in arrays.items()}


def bag_logits(weights: dict[str, Any], features: dict[str, Any], suffix: str = "") -> np.ndarray:
    return bag_vectors(weights, features, suffix) @ weights["classifier.kernel"].numpy() + weights["classifier.bias"].numpy()


def bag_vectors(weights: dict[str, Any], features: dict[str, Any], suffix: str = "") -> np.ndarray:
    """The means of the embeddings [6, D], by hand; without the row of padding."""
    tokens, segments = (features[name + suffix].numpy()[1:] for name in ("inputs", "segments"))
    table = weights["token_embedding"].numpy()
    return np.stack([table[row[each > 0]].mean(0) for row, each in zip(tokens, segments, strict=True)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def training_key(tf: ModuleType) -> Any:
    from trainer.models.blocks import DropoutKey

    return DropoutKey(tf.constant([1, 1], tf.int64), tf.constant(0, tf.int64))


def test_two_classes_of_a_bag_are_one_sigmoid(tensorflow: ModuleType) -> None:
    from trainer.tasks.classification import Classification

    config = example_config("classification", "bag_of_embeddings")
    weights, features = example(tensorflow, config, 2)
    assert weights["classifier.kernel"].shape == (16, 1)
    (loss_sum, count), outputs = Classification(config).evaluate(weights, features)
    logits = bag_logits(weights, features)[:, 0]
    labels = features["labels"].numpy()[1:, 0]
    expected = np.log1p(np.exp(np.where(labels == 1, -logits, logits)))
    np.testing.assert_allclose(loss_sum, expected.sum(), rtol=1e-5)
    assert float(count) == 6
    chances = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(outputs["scores"][1:, 0], np.stack([1 - chances, chances], 1), rtol=1e-4)
    np.testing.assert_array_equal(Classification(config).scores(weights, features), outputs["scores"])


def test_an_encoder_may_average_what_it_makes_of_the_real_tokens(tensorflow: ModuleType) -> None:
    from trainer.models import bert
    from trainer.tasks.classification import Classification

    config = example_config("classification", "bert, mean")
    weights, features = example(tensorflow, config, 3)
    segments = features["segments"]
    states = bert.hidden_states(config.model, weights, features["inputs"], segments).numpy()
    means = np.stack([row[each > 0].mean(0) for row, each in zip(states[1:], segments.numpy()[1:], strict=True)])
    expected = log_softmax(means @ weights["classifier.kernel"].numpy() + weights["classifier.bias"].numpy())
    scores = Classification(config).scores(weights, features)
    np.testing.assert_allclose(np.log(scores[1:, 0]), expected, rtol=1e-3, atol=1e-4)


def test_several_labels_are_the_mean_of_their_binary_losses(tensorflow: ModuleType) -> None:
    from trainer.tasks.classification import Classification

    config = example_config("classification", "bag_of_embeddings", multi_label=True)
    weights, features = example(tensorflow, config, 4)
    (loss_sum, count), outputs = Classification(config).evaluate(weights, features)
    logits, labels = bag_logits(weights, features), features["labels"].numpy()[1:, 0]
    expected = np.log1p(np.exp(np.where(labels == 1, -logits, logits))).mean(1)
    np.testing.assert_allclose(loss_sum, expected.sum(), rtol=1e-5)
    assert float(count) == 6
    np.testing.assert_allclose(outputs["scores"][1:, 0], 1 / (1 + np.exp(-logits)), rtol=1e-4)


@pytest.mark.parametrize(("num_labels", "is_set"), [(3, False), (2, False), (3, True)])
def test_labels_are_smoothed_in_training_alone(tensorflow: ModuleType, num_labels: int, is_set: bool) -> None:
    from trainer.tasks.classification import Classification

    config = example_config("classification", "bag_of_embeddings", train={"label_smoothing": 0.2}, multi_label=is_set)
    weights, features = example(tensorflow, config, num_labels)
    task = Classification(config)
    logits, labels = bag_logits(weights, features), features["labels"].numpy()[1:, 0]
    if is_set or num_labels == 2:
        hits = labels if is_set else labels[:, None]
        smooth = 0.8 * hits + 0.1
        losses = (smooth * np.log1p(np.exp(-logits)) + (1 - smooth) * np.log1p(np.exp(logits))).mean(1)
    else:
        smooth = 0.8 * np.eye(3)[labels] + 0.2 / 3
        losses = -(smooth * log_softmax(logits)).sum(1)
    trained, _ = task.loss_sums(weights, features, training_key(tensorflow))
    evaluated, _ = task.loss_sums(weights, features)
    np.testing.assert_allclose(trained, losses.sum(), rtol=1e-5)
    assert abs(float(trained) - float(evaluated)) > 1e-3


def test_mixup_mixes_the_vectors_and_the_losses(tensorflow: ModuleType) -> None:
    from trainer.tasks.classification import Classification

    config = example_config("classification", "bag_of_embeddings", augmentation={"mixup": 0.4})
    weights, features = example(tensorflow, config, 3)
    share = features["mix"].numpy()[1:]
    first, second = (bag_vectors(weights, features, suffix) for suffix in ("", "_b"))
    logits = (share * first + (1 - share) * second) @ weights["classifier.kernel"].numpy() + weights["classifier.bias"].numpy()
    logs, rows = log_softmax(logits), np.arange(6)
    labels, labels_b = (features[name].numpy()[1:, 0] for name in ("labels", "labels_b"))
    assert (labels != labels_b).any()
    expected = -(share[:, 0] * logs[rows, labels] + (1 - share[:, 0]) * logs[rows, labels_b])
    loss_sum, count = Classification(config).loss_sums(weights, features, training_key(tensorflow))
    np.testing.assert_allclose(loss_sum, expected.sum(), rtol=1e-5)
    assert float(count) == 6
    tokens = sum(float((features[name].numpy() > 0).sum()) for name in ("segments", "segments_b"))
    assert float(Classification(config).num_tokens(features)) == tokens


def test_metrics_leave_out_places_without_a_text(tensorflow: ModuleType) -> None:
    from trainer.tasks.classification import Classification

    scores = np.array([[[0.9, 0.1], [0.3, 0.7]], [[0.6, 0.4], [0.1, 0.9]]], np.float32)
    labels = np.array([[0, 1], [1, -1]], np.int32)
    task = Classification(example_config("classification", "bert", pack=True))
    metrics = task.metrics({"scores": scores, "labels": labels}, [], np.arange(2))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    sets = np.array([[[1, 0], [1, 1]], [[1, 0], [-1, -1]]], np.int32)
    task = Classification(example_config("classification", "bert", pack=True, multi_label=True))
    assert task.metrics({"scores": scores, "labels": sets}, [], np.arange(2))["accuracy"] == pytest.approx(2 / 3)
