"""Losses as sums and counts, so that the mean can be taken once, over all replicas and micro-batches.

Axes: N things that are counted, V classes or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.lanes import num_lanes_being_built
from trainer.models.blocks import TokenOutput, flat_scores, token_scores
from trainer.models.elementwise import cross_entropy
from trainer.tasks import chunked_loss
from trainer.tasks.task import Sums

# Of a table with another number of rows, bfloat16's gradient takes a third longer (50,257 rows on a CPU). For GPUs NVIDIA's
# guide to matrix multiplication asks for multiples of 64 as well.
ROWS_MULTIPLE = 64


def token_loss_sums(
    logits: tf.Tensor, targets: tf.Tensor, smoothing: float = 0.0, num_classes: int | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum of the cross-entropies (nats) of the targets that count, and how many count: float32 scalars.

    `logits` [..., V], of any type; `targets` int32 [...], of which -1 does not count; the rest as of `cross_entropy`.
    """
    targets_N = tf.reshape(targets, (-1,))
    counted_N = tf.cast(targets_N >= 0, tf.float32)
    losses_N = cross_entropy(tf.reshape(logits, (-1, logits.shape[-1])), tf.maximum(targets_N, 0), smoothing, num_classes)
    return tf.reduce_sum(losses_N * counted_N), tf.reduce_sum(counted_N)


def output_loss_sums(
    config: Config,
    output: TokenOutput,
    targets: tf.Tensor,
    smoothing: float = 0.0,
    loss_scale: tf.Tensor | None = None,
) -> Sums:
    """`token_loss_sums` of the logits that the output makes, of all at once or in chunks, as `train.loss_chunk_tokens` has it.

    `loss_scale` as of `tasks.task.Task`.
    """
    chunk, num_tokens = _chunk(config, output, targets), output.table_VD.shape[0]
    padded = _with_rows_that_fit(output)
    if chunk is None:
        return token_loss_sums(flat_scores(padded), targets, smoothing, num_tokens)
    loss_sum = chunked_loss.loss_sum(padded, targets, chunk, smoothing, loss_scale, num_tokens)
    return loss_sum, _num_counted(targets)


def _with_rows_that_fit(output: TokenOutput) -> TokenOutput:
    """In the narrow precisions, with zeros after the table's rows up to the next multiple. The scores they make are padding."""
    table_VD, bias_V = output.table_VD, output.bias_V
    missing = -table_VD.shape[0] % ROWS_MULTIPLE
    if table_VD.dtype == tf.float32 or not missing:
        return output
    bias = None if bias_V is None else tf.pad(bias_V, ((0, missing),))
    return TokenOutput(output.vectors_BTD, tf.pad(table_VD, ((0, missing), (0, 0))), bias)


def evaluate_output(config: Config, output: TokenOutput, targets: tf.Tensor) -> tuple[Sums, tf.Tensor]:
    """The sums without smoothing, and the likeliest token of each position, int32 like `targets`; it says nothing where a
    target does not count."""
    chunk = _chunk(config, output, targets)
    if chunk is None:
        logits = token_scores(output)
        return token_loss_sums(logits, targets), tf.argmax(logits, -1, output_type=tf.int32)
    loss_sum, likeliest = chunked_loss.evaluate(output, targets, chunk)
    return (loss_sum, _num_counted(targets)), likeliest


def num_right(likeliest: tf.Tensor, targets: tf.Tensor) -> dict[str, tf.Tensor]:
    """By row, how many targets that count are the likeliest, and how many count: `right` and `all`, int32 [B].

    Both int32 [B, ...]; of the targets -1 does not count.
    """
    is_counted = targets >= 0
    is_right = is_counted & (likeliest == targets)
    axes = list(range(1, len(targets.shape)))
    return {
        "right": tf.reduce_sum(tf.cast(is_right, tf.int32), axes),
        "all": tf.reduce_sum(tf.cast(is_counted, tf.int32), axes),
    }


def share_right(outputs: Mapping[str, np.ndarray]) -> float:
    """The accuracy that the rows of `num_right` amount to."""
    return float(outputs["right"].sum() / max(1, outputs["all"].sum()))


def _chunk(config: Config, output: TokenOutput, targets: tf.Tensor) -> int | None:
    num_positions = targets.shape.num_elements()
    assert num_positions is not None, "batches have shapes that are known when the graph is built"
    num_lanes = num_lanes_being_built()
    chunk = config.loss_chunk(num_positions * num_lanes, output.table_VD.shape[0])
    return None if chunk is None else -(-chunk // num_lanes)


def _num_counted(targets: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(targets >= 0, tf.float32))
