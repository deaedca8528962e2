"""What a packed row computes equals what its parts compute alone; padding counts nothing; micro-batches add up."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.unit.task_examples import (
    example_classification,
    example_config,
    example_stream,
    example_table,
    example_text_to_text,
    example_texts,
    example_tokenizer,
    packed_rows,
)
from trainer.config import Config
from trainer.data.samples.documents import MaskedSamples, PackedDocuments
from trainer.data.samples.question_answering import QuestionSamples
from trainer.data.windows import Arrays, Samples
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

TOKENIZER = example_tokenizer()
LENGTHS = (3, 9, 1, 5, 14, 2, 7, 4, 30, 6, 3, 8)
NUM_LABELS = 3

PACKED = [
    ("language_modeling", "gpt", {"pack": "best_fit"}),
    ("masked_language_modeling", "bert", {"pack": "best_fit", "masking": {"rate": 0.3}}),
    ("classification", "bert", {"pack": True, "fields": {"text_b": "b"}}),
    ("classification", "gpt", {"pack": True}),
    ("classification", "bag_of_embeddings", {"pack": True}),
    ("classification", "bert", {"pack": True, "multi_label": True}),
    ("classification", "bert, mean", {"pack": True, "fields": {"text_b": "b"}}),
    ("translation", "gpt", {"pack": True, "prompt": "{source} beta"}),
    ("translation", "encoder_decoder", {"pack": True, "target_length": 20}),
    ("translation", "t5", {"pack": True, "target_length": 20}),
]
NAMES = [f"{task}-{family}-{number}" for number, (task, family, _) in enumerate(PACKED)]


def example_samples(config: Config) -> Samples:
    """A dozen records or documents, packed where the configuration says so."""
    if config.task in ("language_modeling", "masked_language_modeling"):
        stream = example_stream(example_texts(LENGTHS))
        rows = packed_rows(config, stream)
        if config.task == "language_modeling":
            return PackedDocuments(stream, rows, config.data.sequence_length)
        return MaskedSamples(config, stream, rows, TOKENIZER)
    if config.task == "classification":
        second = {"text_b": example_texts(LENGTHS[::-1], seed=2)} if config.data.fields.text_b else {}
        labels = [[number % NUM_LABELS] for number in range(len(LENGTHS))]
        table = example_table(text=example_texts(LENGTHS), labels=labels, **second)
        return example_classification(config, table, NUM_LABELS)
    if config.task == "question_answering":
        contexts = example_texts((40, 6, 12))
        table = example_table(
            context=contexts, question=example_texts((2, 3, 4)), answer=[[12, 14], [], [0, 3]], answers=["[]"] * 3
        )
        return QuestionSamples(config, table, TOKENIZER)
    table = example_table(source=example_texts(LENGTHS), target=example_texts(LENGTHS[::-1], seed=1))
    return example_text_to_text(config, table)


def example_arrays(config: Config) -> Arrays:
    """All samples as one batch."""
    samples = example_samples(config)
    return samples.gather(np.arange(samples.num_samples), np.arange(samples.num_samples))


def example_weights(tf: ModuleType, config: Config) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    parameters = run_parameters(config, Sizes(TOKENIZER.vocabulary_size, NUM_LABELS))
    return {
        name: tf.constant(generator.normal(1.0 if "gain" in name else 0.0, 0.3, each.shape), tf.float32)
        for name, each in parameters.items()
    }


def computed(tf: ModuleType, config: Config, arrays: Mapping[str, Any]) -> list[np.ndarray]:
    """The loss sum, how many it is of, and the gradients of all weights."""
    from trainer.tasks.choice import choose_task

    weights = example_weights(tf, config)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss_sum, count = choose_task(config).loss_sums(weights, {k: tf.constant(v) for k, v in arrays.items()})
    gradients = tape.gradient(loss_sum, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [loss_sum.numpy(), count.numpy(), *(each.numpy() for each in gradients.values())]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert expected[1] > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4 * max(1e-3, np.abs(other).max()))


def alone(arrays: Arrays) -> Arrays:
    """Each part of each row, at the begin of a row of its own, as it would come unpacked."""
    sides = {
        "segments": ("inputs", "targets", "types", "segments"),
        "source_segments": ("source", "source_segments"),
        "target_segments": ("inputs", "targets", "target_segments"),
    }
    main = next(name for name in sides if name in arrays)
    parts = [(row, number) for row, each in enumerate(arrays[main]) for number in range(1, each.max() + 1)]
    result: Arrays = {}
    for side, names in sides.items():
        for name in names if side in arrays else ():
            if name not in arrays:
                continue
            result[name] = np.full((len(parts), arrays[name].shape[1]), -1 if name == "targets" else 0, np.int32)
            for new, (row, number) in enumerate(parts):
                part = arrays[name][row][arrays[side][row] == number]
                result[name][new, : len(part)] = 1 if name == side else part
    if "labels" in arrays:
        result["labels"] = np.stack([arrays["labels"][row, number - 1 : number] for row, number in parts])
        begins = [int(np.flatnonzero(arrays["segments"][row] == number)[0]) for row, number in parts]
        places = [arrays["places"][row, number - 1] - begin for (row, number), begin in zip(parts, begins, strict=True)]
        result["places"] = np.array(places, np.int32)[:, None]
    return result


@pytest.mark.parametrize(("task", "family", "data"), PACKED, ids=NAMES)
def test_a_packed_row_computes_what_its_parts_compute_alone(
    tensorflow: ModuleType, task: str, family: str, data: dict[str, Any]
) -> None:
    config = example_config(task, family, **data)
    packed = example_arrays(config)
    parts = alone(packed)
    main = next(name for name in ("inputs", "source") if name in parts)
    assert len(parts[main]) > len(packed[main])
    assert "positions" not in parts and "source_positions" not in parts
    assert_equal(computed(tensorflow, config, packed), computed(tensorflow, config, parts))


@pytest.mark.parametrize(
    ("task", "family", "data"), [*PACKED, ("question_answering", "bert", {"window_overlap": 4})], ids=[*NAMES, "answers"]
)
def test_rows_of_padding_count_nothing_and_micro_batches_add_up(
    tensorflow: ModuleType, task: str, family: str, data: dict[str, Any]
) -> None:
    from trainer.tasks.choice import choose_task

    config = example_config(task, family, **data)
    samples = example_samples(config)
    indices = np.arange(samples.num_samples)
    whole = samples.gather(indices, indices)
    expected = computed(tensorflow, config, whole)
    padded = np.concatenate([indices, [-1, -1]])
    assert_equal(computed(tensorflow, config, samples.gather(padded, padded)), expected)
    half = len(indices) // 2
    first, second = (
        computed(tensorflow, config, {name: array[part] for name, array in whole.items()})
        for part in (slice(None, half), slice(half, None))
    )
    assert_equal([one + other for one, other in zip(first, second, strict=True)], expected)

    nothing = samples.gather(np.array([-1]), np.array([-1]))
    sums, outputs = choose_task(config).evaluate(example_weights(tensorflow, config), constants(tensorflow, nothing))
    assert [float(each) for each in sums] == [0.0, 0.0]
    assert all(value.shape[0] == 1 for value in outputs.values())
    assert float(choose_task(config).num_tokens(constants(tensorflow, nothing))) == 0.0


@pytest.mark.parametrize(("task", "family", "data"), PACKED, ids=NAMES)
def test_the_tokens_that_count_are_those_that_are_no_padding(
    tensorflow: ModuleType, task: str, family: str, data: dict[str, Any]
) -> None:
    from trainer.tasks.choice import choose_task

    config = example_config(task, family, **data)
    arrays = example_arrays(config)
    expected = sum((arrays[name] > 0).sum() for name in arrays if name.endswith("segments"))
    assert float(choose_task(config).num_tokens(constants(tensorflow, arrays))) == expected


def constants(tf: ModuleType, arrays: Arrays) -> dict[str, Any]:
    return {name: tf.constant(array) for name, array in arrays.items()}
