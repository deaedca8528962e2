"""Private updates against a reference in NumPy: samples drawn, gradients clipped one by one, noise added once.

M: rows, T: tokens of a row, D: width.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import MODELS, example_config, example_tokenizer
from tests.unit.toy_training import TWO_REPLICAS, VOCABULARY_SIZE
from trainer.config import Config, plan_batches

pytestmark = pytest.mark.usefixtures("tensorflow")

CLIP = 0.05


def bag_config(**changes: Any) -> Config:
    train = {"global_batch_size": 8, "micro_batch_size": 4}
    content = example_config("classification", "bag_of_embeddings", length=6, train=train).model_dump()
    content["optimizer"] |= {"clip_norm": None, "kind": "adam", "weight_decay": 0.0}
    content["model"]["dropout"] = 0.0
    for section, values in changes.items():
        content[section] = {**(content[section] or {}), **values}
    return Config.model_validate(content)


def private_config(noise: float, **changes: Any) -> Config:
    return bag_config(privacy={"delta": 1e-5, "clip_norm": CLIP, "noise_multiplier": noise, "seed": 3}, **changes)


def bag_batch(num_rows: int = 12, length: int = 6) -> dict[str, np.ndarray]:
    """Rows of unequal lengths; the last has no sample."""
    generator = np.random.default_rng(4)
    lengths = generator.integers(1, length + 1, num_rows)
    segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
    labels = generator.integers(0, 2, (num_rows, 1)).astype(np.int32)
    segments[-1], labels[-1] = 0, -1
    tokens = generator.integers(0, VOCABULARY_SIZE, (num_rows, length)).astype(np.int32)
    places = np.zeros((num_rows, 1), np.int32)
    ids = np.where(labels[:, 0] >= 0, np.arange(num_rows), -1)
    return {"inputs": tokens, "segments": segments, "places": places, "labels": labels, "sample_ids": ids}


def reference_gradients(weights: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of each sample [M, ...]: a text's mean embedding e, the loss of sigmoid(e . w + b), by hand in float64."""
    table, kernel, bias = (
        weights[name].astype(np.float64) for name in ("token_embedding", "classifier.kernel", "classifier.bias")
    )
    num_rows = len(batch["inputs"])
    gradients = {name: np.zeros((num_rows, *weights[name].shape)) for name in weights}
    for row in range(num_rows - 1):
        tokens = batch["inputs"][row][batch["segments"][row] > 0]
        mean = table[tokens].mean(0)
        error = 1 / (1 + np.exp(-(mean @ kernel[:, 0] + bias[0]))) - batch["labels"][row, 0]
        gradients["classifier.kernel"][row, :, 0] = error * mean
        gradients["classifier.bias"][row, 0] = error
        np.add.at(gradients["token_embedding"][row], tokens, error * kernel[:, 0] / len(tokens))
    return gradients


def clipped_sum(gradients: dict[str, np.ndarray], clip_norm: float) -> dict[str, np.ndarray]:
    squares = sum((gradient**2).reshape(len(gradient), -1).sum(1) for gradient in gradients.values())
    factors = np.minimum(1.0, clip_norm / np.maximum(np.sqrt(squares), 1e-12))
    assert (factors < 1).any() and (factors == 1).any(), "some are clipped, and some are not"
    return {name: np.tensordot(factors, gradient, 1) for name, gradient in gradients.items()}


def one_update(
    config: Config, backend: dict[str, Any] | None = None, num_micro_batches: int = 1
) -> tuple[Any, dict[str, np.ndarray]]:
    """The state after an update of 12 rows, and what was reported."""
    import tensorflow as tf

    from trainer.distribution import connect
    from trainer.position import GraphPosition
    from trainer.privacy.gradients import Noise
    from trainer.sizes import Sizes
    from trainer.step import compile_training
    from trainer.training_state import create_state

    train = config.train.model_copy(update={"global_batch_size": 8, "micro_batch_size": 12 // num_micro_batches})
    config = config.model_copy(
        update={"train": train, **({"distribution": config.distribution.model_copy(update=backend)} if backend else {})}
    )
    distribution = connect(config.distribution)
    plan = plan_batches(train, distribution.num_replicas, 12)
    assert plan.global_batch_size == 12
    with distribution.scope():
        state = create_state(config, Sizes(VOCABULARY_SIZE, 2))
    assert config.privacy is not None and config.privacy.noise_multiplier is not None
    noise = Noise((7, 9), config.privacy.noise_multiplier * config.privacy.clip_norm)
    update = compile_training(config, state, distribution, plan, "graph", GraphPosition(), noise)
    elements: dict[str, list[np.ndarray]] = {}
    for replica in distribution.replicas:
        firsts = list(plan.first_rows(replica))
        for name, values in bag_batch().items():
            rows = np.stack([values[first : first + plan.rows_per_micro_batch] for first in firsts])
            elements.setdefault(name, []).append(rows)
        elements.setdefault("first_row", []).append(np.array(firsts, np.int64))
        elements.setdefault("first_position", []).append(np.array(firsts, np.int64) + 5 * 12)  # the sixth update
    batches = distribution.iterate(
        tf.data.Dataset.from_tensor_slices({name: np.stack(each) for name, each in elements.items()})
    )
    reported = update(batches, tf.constant(0, tf.int64), tf.constant(1))
    return state, {name: value.numpy() for name, value in reported.items()}


def moments(state: Any) -> dict[str, np.ndarray]:
    """Adam's first moments after one update are (1 - beta1) times the gradient."""
    return {name: slot.numpy() / 0.1 for name, slot in state.slots["first_moments"].items()}


def initial_weights() -> dict[str, np.ndarray]:
    from trainer.sizes import Sizes
    from trainer.training_state import create_weights

    return {name: weight.numpy() for name, weight in create_weights(bag_config(), Sizes(VOCABULARY_SIZE, 2)).items()}


def noise_of(update: int, shapes: list[tuple[int, ...]], deviation: float) -> list[np.ndarray]:
    import tensorflow as tf

    from trainer.privacy.gradients import Noise

    added = Noise((7, 9), deviation).added([tf.zeros(shape) for shape in shapes], tf.constant(update, tf.int64))
    return [each.numpy() for each in added]


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_an_update_is_that_of_the_reference(noise: float) -> None:
    weights = initial_weights()
    expected = clipped_sum(reference_gradients(weights, bag_batch()), CLIP)
    added = noise_of(5, [each.shape for each in weights.values()], noise * CLIP)
    state, reported = one_update(private_config(noise))
    found = moments(state)
    for (name, gradient), drawn in zip(expected.items(), added, strict=True):
        np.testing.assert_allclose(found[name], (gradient + drawn) / 8, atol=2e-7 * max(1, noise), err_msg=name)
    total = np.sqrt(sum((((expected[name] + drawn) / 8) ** 2).sum() for name, drawn in zip(expected, added, strict=True)))
    assert reported["gradient_norm"][0] == pytest.approx(total, rel=1e-5)
    assert not reported["is_skipped"][0]


def test_no_operation_is_left_to_a_loop_over_the_samples(caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow would fall back on one, and warn."""
    with caplog.at_level(logging.WARNING, "tensorflow"):
        one_update(private_config(0.0))
    assert "while_loop" not in caplog.text


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_it_does_not_matter_how_rows_fall_on_replicas_and_micro_batches(noise: float) -> None:
    """So noise is there once."""
    reference = moments(one_update(private_config(noise))[0])
    for backend, parts in ((None, 3), (TWO_REPLICAS, 1), (TWO_REPLICAS, 3)):
        found = moments(one_update(private_config(noise), backend, parts)[0])
        for name, gradient in reference.items():
            np.testing.assert_allclose(found[name], gradient, atol=1e-6, err_msg=f"{name}, {backend}, {parts}")


def test_noise_is_gaussian_and_of_each_update_and_weight_its_own() -> None:
    first, second = noise_of(5, [(300, 300), (300, 300)], 0.7)
    again, later = noise_of(5, [(300, 300)], 0.7)[0], noise_of(6, [(300, 300)], 0.7)[0]
    np.testing.assert_array_equal(first, again)
    for each in (first, second, later):
        assert each.mean() == pytest.approx(0.0, abs=5 * 0.7 / 300)
        assert each.std() == pytest.approx(0.7, rel=0.01)
        assert np.mean(np.abs(each) < 0.7) == pytest.approx(0.6827, abs=0.01)
    for one, other in ((first, second), (first, later)):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_a_sample_whose_gradient_is_not_finite_counts_as_none() -> None:
    import tensorflow as tf

    from trainer.models.blocks import DropoutKey
    from trainer.privacy.gradients import clipped_sums

    def differentiate(features: Any, key: Any) -> Any:
        return [features["x"][0] * tf.ones(3)], tf.constant(1.0), tf.constant(1.0)

    key = DropoutKey(tf.constant([1, 2], tf.int64), tf.constant(0, tf.int64))
    (total,), loss, count = clipped_sums(differentiate, {"x": tf.constant([1.0, np.nan, np.inf, 2.0])}, key, 100.0)
    np.testing.assert_allclose(total.numpy(), [3.0, 3.0, 3.0])
    assert (loss.numpy(), count.numpy()) == (4.0, 4.0)


TASKS = [
    ("classification", "bag_of_embeddings"),
    ("classification", "bert"),
    ("classification", "gpt"),
    ("language_modeling", "gpt"),
    ("masked_language_modeling", "bert"),
    ("question_answering", "bert"),
]
SLOW_TASKS = [("translation", "encoder_decoder"), ("summarization", "t5"), ("translation", "gpt")]


@pytest.mark.parametrize(
    ("task", "family", "recompute", "apart"),
    [
        *((task, family, "none", False) for task, family in TASKS),
        *(pytest.param(task, family, "none", False, marks=pytest.mark.slow) for task, family in SLOW_TASKS),
        ("language_modeling", "gpt", "blocks", True),
    ],
)
def test_gradients_of_all_samples_at_once_are_those_of_each_by_itself(
    task: str, family: str, recompute: str, apart: bool
) -> None:
    """With dropout, whose masks belong to rows; and with chains that XLA compiles."""
    import tensorflow as tf

    from trainer.models.apart import compiled_apart
    from trainer.models.blocks import DropoutKey
    from trainer.privacy.gradients import clipped_sums
    from trainer.sizes import Sizes
    from trainer.tasks.choice import choose_task
    from trainer.training_state import create_weights

    window = {"window_overlap": 2} if task == "question_answering" else {}
    content = example_config(task, family, length=8, pack=False, **window).model_dump()
    content["model"] |= {**MODELS[family], "dropout": 0.2, "recompute": recompute}
    config = Config.model_validate(content)
    weights = create_weights(config, Sizes(example_tokenizer().vocabulary_size, 2))
    values, chosen = [tf.convert_to_tensor(each) for each in weights.values()], choose_task(config)
    features = {name: tf.constant(value) for name, value in rows_of(task, family, config).items()}
    key = DropoutKey(tf.constant([1, 2], tf.int64), tf.constant(3, tf.int64))

    def differentiate(features: Any, key: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss_sum, num_counted = chosen.loss_sums(dict(zip(weights, values, strict=True)), features, key)
        return tape.gradient(loss_sum, values, unconnected_gradients=tf.UnconnectedGradients.ZERO), loss_sum, num_counted

    one_by_one: list[np.ndarray] = [np.zeros(each.shape, np.float32) for each in values]
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in features.items()}
        gradients, _, count = differentiate(alone, DropoutKey(key.seed, key.first_row + row))
        gradients = [each.numpy() / max(1.0, float(count)) for each in gradients]
        factor = min(1.0, 0.5 / max(1e-12, float(np.sqrt(sum((each**2).sum() for each in gradients)))))
        one_by_one = [total + factor * each for total, each in zip(one_by_one, gradients, strict=True)]
    with compiled_apart(apart):
        together = tf.function(lambda: clipped_sums(differentiate, features, key, 0.5), autograph=False)()[0]
    for name, found, expected in zip(weights, together, one_by_one, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6, err_msg=name)


def rows_of(task: str, family: str, config: Config) -> dict[str, np.ndarray]:
    """Four rows of eight tokens, as the task's samples have them; the last is padding."""
    generator = np.random.default_rng(1)
    size = example_tokenizer().vocabulary_size

    def tokens() -> np.ndarray:
        return generator.integers(0, size, (4, 8)).astype(np.int32)

    segments = (np.arange(8) < np.array([[8], [5], [3], [0]])).astype(np.int32)
    targets = np.where(segments > 0, tokens(), -1).astype(np.int32)
    column = np.zeros((4, 1), np.int32)
    match task:
        case "language_modeling":
            return {"inputs": tokens(), "targets": targets}
        case "masked_language_modeling":
            return {"inputs": tokens(), "targets": targets, "segments": segments}
        case "classification":
            labels = np.array([[1], [0], [1], [-1]], np.int32)
            return {"inputs": tokens(), "segments": segments, "places": column, "labels": labels}
        case "question_answering":
            found = {"inputs": tokens(), "segments": segments, "types": np.zeros((4, 8), np.int32), "context_mask": segments}
            return {
                **found,
                "start": np.array([[1], [0], [2], [-1]], np.int32),
                "end": np.array([[3], [4], [2], [-1]], np.int32),
            }
        case _ if family == "gpt":
            return {"inputs": tokens(), "targets": targets}
        case _:
            both = {"source": tokens(), "source_segments": segments, "inputs": tokens(), "target_segments": segments}
            return {**both, "targets": targets}


def test_samples_are_drawn_with_the_same_probability_each_by_itself() -> None:
    from trainer.data.order import SampleOrder
    from trainer.data.poisson_order import PoissonOrder

    for size in (400, 20_000):  # below and above which permutations are made whole
        order = PoissonOrder(SampleOrder([size - 100, 100], None, 1), 0.1, size, secret=11)
        drawn = np.array([order.sample_ids(update * size, size) for update in range(300)])
        counts = (drawn >= 0).sum(1)
        assert counts.mean() == pytest.approx(0.1 * size, abs=5 * np.sqrt(0.09 * size / 300))
        assert counts.var() == pytest.approx(0.09 * size, rel=0.4)
        taken = np.zeros((300, size), bool)
        for update, row in enumerate(drawn):
            ids = row[row >= 0]
            assert len(np.unique(ids)) == len(ids)
            assert (row[len(ids) :] == -1).all()
            taken[update, ids] = True
        shares = taken.mean(0)
        assert shares.mean() == pytest.approx(0.1, rel=0.02)
        assert shares.std() == pytest.approx(np.sqrt(0.09 / 300), rel=0.15)
        # Neighbours are no more often there together than chance would have it.
        assert np.mean(taken[:, 1:] & taken[:, :-1]) == pytest.approx(0.01, rel=0.1)


def test_a_draw_is_a_function_of_the_secret_and_the_update_alone() -> None:
    from trainer.data.order import SampleOrder
    from trainer.data.poisson_order import PoissonOrder

    order = SampleOrder([3_000], None, 1)
    first, other = (PoissonOrder(order, 0.02, 120, secret) for secret in (5, 6))
    whole = first.sample_ids(0, 10 * 120)
    pieces = np.concatenate([PoissonOrder(order, 0.02, 120, 5).sample_ids(begin, 30) for begin in range(0, 10 * 120, 30)])
    np.testing.assert_array_equal(whole, pieces)
    assert not np.array_equal(whole, other.sample_ids(0, 10 * 120))
    assert not np.array_equal(whole[:120], whole[120:240])


def test_samples_that_are_held_out_are_never_drawn() -> None:
    from trainer.data.order import SampleOrder
    from trainer.data.poisson_order import PoissonOrder

    chosen = [np.arange(0, 1_000, 2)]
    order = PoissonOrder(SampleOrder([1_000], None, 1, chosen), 0.2, 200, 5)
    assert order.num_samples == 500
    ids = order.sample_ids(0, 200 * 50)
    assert set(ids[ids >= 0].tolist()) == set(range(0, 1_000, 2))
