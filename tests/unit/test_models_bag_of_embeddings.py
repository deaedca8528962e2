"""Averages of embeddings: what counts in them, and their gradient."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import bag_of_embeddings
from trainer.models.blocks import DropoutKey

pytestmark = pytest.mark.usefixtures("tensorflow")

VOCABULARY_SIZE = 23


def table(width: int) -> dict[str, tf.Tensor]:
    return {"token_embedding": tf.constant(np.random.default_rng(0).normal(size=(VOCABULARY_SIZE, width)), tf.float32)}


def random_tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY_SIZE, (2, 6), np.int32)


def test_a_bag_of_embeddings_is_the_mean_of_each_texts_real_tokens() -> None:
    model = ModelConfig(family="bag_of_embeddings", width=4)
    weights, tokens = table(4), random_tokens()
    segments = np.array([[1, 1, 1, 3, 3, 0], [0, 0, 0, 0, 0, 0]], np.int32)
    ours = bag_of_embeddings.averages(model, weights, tf.constant(tokens), tf.constant(segments), 3).numpy()
    rows = weights["token_embedding"].numpy()
    np.testing.assert_allclose(ours[0, 0], rows[tokens[0, :3]].mean(0), rtol=1e-5)
    np.testing.assert_allclose(ours[0, 2], rows[tokens[0, 3:5]].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(ours[0, 1], 0)
    np.testing.assert_array_equal(ours[1], 0)


def test_the_gradient_of_a_bag_of_embeddings_is_dense_and_each_tokens_share() -> None:
    model = ModelConfig(family="bag_of_embeddings", width=2)
    weights, segments = table(2), tf.constant([[1, 1, 2, 0]])
    with tf.GradientTape() as tape:
        tape.watch(weights)
        total = tf.reduce_sum(bag_of_embeddings.averages(model, weights, tf.constant([[4, 4, 7, 9]]), segments, 2))
    gradient = tape.gradient(total, weights)["token_embedding"]
    assert isinstance(gradient, tf.Tensor)
    expected = np.zeros((VOCABULARY_SIZE, 2))
    expected[[4, 7]] = 1
    np.testing.assert_allclose(gradient, expected)


def test_a_bag_of_embeddings_drops_out_only_with_a_key() -> None:
    model = ModelConfig(family="bag_of_embeddings", width=64, dropout=0.5)
    arguments = (model, table(64), tf.constant(random_tokens()), tf.ones((2, 6), tf.int32), 1)
    assert (bag_of_embeddings.averages(*arguments).numpy() != 0).all()
    key = DropoutKey(tf.constant([1, 7], tf.int64), tf.constant(0, tf.int64))
    assert 0.2 < (bag_of_embeddings.averages(*arguments, key).numpy() == 0).mean() < 0.8
