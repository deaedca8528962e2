"""The `tf.data` pipelines: batches of the order's samples, read by memory-map gathers; nothing in them holds state.

A: micro-batches of an update, M: rows of a micro-batch. Every element is what one replica needs for one update: the task's
features [A, M, ...], `sample_ids` int64 [A, M], `first_row` int64 [A], the row of the global batch at which each
micro-batch begins, and `first_position` int64 [A], that of the order. Elements go by step and, within a step, by replica.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from trainer.config import BatchPlan
from trainer.data.order import PADDING_ID, SampleOrder
from trainer.data.poisson_order import PoissonOrder
from trainer.data.windows import Arrays, Features, Int64Array, Samples

# A gather takes well under a millisecond and a step many: one thread reads while another waits for its turn. More of
# them would take cores from the computation.
NUM_READERS = 2
NUM_PREFETCHED = 8


def training_batches(
    samples: Sequence[Samples], order: SampleOrder | PoissonOrder, plan: BatchPlan, first_sample: int, replicas: range
) -> tf.data.Dataset:
    """The batches from the position `first_sample` of the order on, without end, for the replicas of this process."""

    def draws(ids: Int64Array, first: int) -> Int64Array:
        return np.arange(first, first + len(ids), dtype=np.int64)

    return _batches(samples, order, plan, first_sample, replicas, order.sample_ids, draws)


def evaluation_batches(
    samples: Sequence[Samples],
    plan: BatchPlan,
    num_batches: int | None,
    replicas: range,
    seed: int,
    chosen: Sequence[Int64Array] | None = None,
) -> tuple[tf.data.Dataset, int]:
    """Batches that hold each sample once, and how many of them are to be read: at most `num_batches`, None for all. With
    `chosen`, the numbers of the samples of each data set that are meant, it is these alone.

    They come in one shuffled order, so that the first batches are a fair sample of all; with the same `seed` the losses
    of two runs compare. The last batch is filled up with rows of padding (id -1); so are any that are read beyond it.
    """
    order = SampleOrder([part.num_samples for part in samples], None, seed, chosen)
    num_all = -(-order.num_samples // plan.global_batch_size)

    def ids_once(first: int, count: int) -> Int64Array:
        ids = np.full(count, PADDING_ID, np.int64)
        num_left = min(count, max(0, order.num_samples - first))
        if num_left:
            ids[:num_left] = order.sample_ids(first, num_left)
        return ids

    dataset = _batches(samples, order, plan, 0, replicas, ids_once, lambda ids, first: ids)
    return dataset, num_all if num_batches is None else min(num_batches, num_all)


def _batches(
    samples: Sequence[Samples],
    order: SampleOrder | PoissonOrder,
    plan: BatchPlan,
    first_sample: int,
    replicas: range,
    sample_ids: Callable[[int, int], Int64Array],
    draws: Callable[[Int64Array, int], Int64Array],
) -> tf.data.Dataset:
    features = samples[0].features
    num_micro_batches, num_rows = plan.num_micro_batches, plan.rows_per_micro_batch

    def read(element: np.int64) -> tuple[np.ndarray, ...]:
        step, replica_number = divmod(int(element), len(replicas))
        first_rows = list(plan.first_rows(replicas[replica_number]))
        firsts = [first_sample + step * plan.global_batch_size + row for row in first_rows]
        parts = [sample_ids(first, num_rows) for first in firsts]
        drawn = np.concatenate([draws(part, first) for part, first in zip(parts, firsts, strict=True)])
        ids = np.concatenate(parts)
        arrays = _gather(samples, order, ids, drawn, features)
        return ids, np.asarray(first_rows, np.int64), np.asarray(firsts, np.int64), *(arrays[name] for name in features)

    @tf.autograph.experimental.do_not_convert  # it has nothing to convert, and looking for it takes a tenth of a second
    def element_of(number: tf.Tensor) -> dict[str, tf.Tensor]:
        dtypes = [tf.as_dtype(feature.dtype) for feature in features.values()]
        types = (tf.int64, tf.int64, tf.int64, *dtypes)
        ids, first_rows, firsts, *arrays = tf.numpy_function(read, [number], types, stateful=False)
        shaped = {
            name: tf.reshape(array, (num_micro_batches, num_rows, *feature.shape))
            for (name, feature), array in zip(features.items(), arrays, strict=True)
        }
        return shaped | {
            "sample_ids": tf.reshape(ids, (num_micro_batches, num_rows)),
            "first_row": tf.reshape(first_rows, (num_micro_batches,)),
            "first_position": tf.reshape(firsts, (num_micro_batches,)),
        }

    dataset = tf.data.Dataset.counter(dtype=tf.int64)
    dataset = dataset.map(element_of, num_parallel_calls=NUM_READERS, deterministic=True)
    return dataset.prefetch(NUM_PREFETCHED).with_options(_options())


def _gather(
    samples: Sequence[Samples], order: SampleOrder | PoissonOrder, ids: Int64Array, draws: Int64Array, features: Features
) -> Arrays:
    """Reads samples [B] of all data sets, with one call for each data set that has any."""
    if len(samples) == 1:
        return samples[0].gather(ids, draws)
    arrays: Arrays = {name: np.empty((len(ids), *each.shape), each.dtype) for name, each in features.items()}
    datasets, locals_ = order.locate(ids)
    padding = ids < 0
    datasets[padding], locals_[padding] = 0, PADDING_ID
    for number in np.unique(datasets).tolist():
        rows = np.flatnonzero(datasets == number)
        for name, array in samples[number].gather(locals_[rows], draws[rows]).items():
            arrays[name][rows] = array
    return arrays


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = NUM_READERS
    options.threading.max_intra_op_parallelism = 1
    # Each process asks for its own replicas' rows: there is nothing left to divide.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
