"""The loss over the vocabulary for a chunk of positions at a time: the logits of all are never there at once.

Axes: N positions, K chunks of C positions, D width, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from trainer.models.blocks import TokenOutput, flat_scores, token_scores
from trainer.models.elementwise import cross_entropy_with_gradient
from trainer.models.products import product


class _Chunks(NamedTuple):
    """Positions as equal chunks; those that count come first, so that chunks without any are at the end."""

    vectors_KCD: tf.Tensor
    targets_KC: tf.Tensor
    num_counted: tf.Tensor  # chunks that have a position that counts: int32 scalar
    places_N: tf.Tensor  # where each position is among the K x C


def loss_sum(
    output: TokenOutput,
    targets: tf.Tensor,
    chunk: int,
    smoothing: float = 0.0,
    loss_scale: tf.Tensor | None = None,
    num_tokens: int | None = None,
) -> tf.Tensor:
    """The sum that `losses.token_loss_sums` has of the output's logits, for at most `chunk` positions at once: float32 scalar.
    What the table has after `num_tokens` rows is padding.

    Each chunk's gradients are computed along with its loss and kept, which takes no product more than with all logits (Hsu
    et al. 2024, Liger Kernel, arXiv:2410.10989). So there are first derivatives alone. That of the table is added up in
    float32. In float16 they are kept times `loss_scale`, by which the caller multiplies the loss: without it small ones would
    be lost in the products.
    """
    targets_N, factors = tf.reshape(targets, (-1,)), () if output.bias_V is None else (output.bias_V,)

    @tf.custom_gradient
    def total(vectors: tf.Tensor, table_VD: tf.Tensor, *bias: tf.Tensor) -> tuple[tf.Tensor, Callable[..., list[tf.Tensor]]]:
        chunks = _divide(vectors, targets_N, chunk)
        result, found_KCD, *others = _with_gradients(chunks, table_VD, bias, smoothing, loss_scale, num_tokens)
        found_ND = tf.gather(tf.reshape(found_KCD, (-1, vectors.shape[-1])), chunks.places_N)

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            factor = upstream if loss_scale is None else upstream / loss_scale
            kept = [tf.reshape(found_ND, vectors.shape), *others]
            arguments = (vectors, table_VD, *bias)
            return [
                tf.cast(tf.cast(each, tf.float32) * factor, argument.dtype)
                for each, argument in zip(kept, arguments, strict=True)
            ]

        return result, gradient

    return total(output.vectors_BTD, output.table_VD, *factors)


def evaluate(output: TokenOutput, targets: tf.Tensor, chunk: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum of the losses, and the likeliest token of each position that counts, int32 like `targets`."""
    chunks = _divide(output.vectors_BTD, tf.reshape(targets, (-1,)), chunk)
    num_chunks, size = chunks.targets_KC.shape

    def body(index: tf.Tensor, total: tf.Tensor, likeliest: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        targets_C = chunks.targets_KC[index]
        logits_CV = token_scores(TokenOutput(chunks.vectors_KCD[index][None], output.table_VD, output.bias_V))[0]
        losses_C, _ = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits_CV, labels=tf.maximum(targets_C, 0))
        found = likeliest.write(index, tf.argmax(logits_CV, -1, output_type=tf.int32))
        return index + 1, total + tf.reduce_sum(losses_C * tf.cast(targets_C >= 0, tf.float32)), found

    likeliest = tf.TensorArray(tf.int32, num_chunks, element_shape=(size,))
    _, total, likeliest = _each(chunks, body, (0, tf.constant(0.0), likeliest))
    return total, tf.reshape(tf.gather(tf.reshape(likeliest.stack(), (-1,)), chunks.places_N), targets.shape)


def _with_gradients(
    chunks: _Chunks,
    table_VD: tf.Tensor,
    bias: Sequence[tf.Tensor],
    smoothing: float,
    loss_scale: tf.Tensor | None,
    num_tokens: int | None,
) -> tuple[tf.Tensor, ...]:
    """The sum of the losses, and its gradients by vectors [K, C, D], table and, where there is one, bias: float32, but that by
    the vectors in their own precision; all times the scale."""
    num_chunks, size, width = chunks.vectors_KCD.shape

    def body(index: tf.Tensor, total: tf.Tensor, by_vectors: tf.TensorArray, *others: tf.Tensor) -> tuple[tf.Tensor, ...]:
        vectors_CD, targets_C = chunks.vectors_KCD[index], chunks.targets_KC[index]
        counted_C, labels_C = tf.cast(targets_C >= 0, tf.float32), tf.maximum(targets_C, 0)
        logits_CV = flat_scores(TokenOutput(vectors_CD[None], table_VD, *bias))
        weights_C = counted_C if loss_scale is None else counted_C * loss_scale
        losses_C, by_logits_CV = cross_entropy_with_gradient(logits_CV, labels_C, smoothing, weights_C, num_tokens)
        narrow_CV = tf.cast(by_logits_CV, table_VD.dtype)
        by_vectors = by_vectors.write(index, product(narrow_CV, table_VD))
        parts = [tf.cast(product(narrow_CV, vectors_CD, transpose_a=True), tf.float32)]
        parts += [tf.reduce_sum(by_logits_CV, 0) for _ in bias]
        added = (other + part for other, part in zip(others, parts, strict=True))
        return index + 1, total + tf.reduce_sum(losses_C * counted_C), by_vectors, *added

    by_vectors = tf.TensorArray(chunks.vectors_KCD.dtype, num_chunks, element_shape=(size, width))
    zeros = (tf.zeros(factor.shape) for factor in (table_VD, *bias))
    _, total, by_vectors, *others = _each(chunks, body, (0, tf.constant(0.0), by_vectors, *zeros))
    return total, by_vectors.stack(), *others


def _each(chunks: _Chunks, body: Callable[..., tuple[tf.Tensor, ...]], begin: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    """What the loop over the chunks that have a position that counts leaves behind, one chunk at a time."""
    return tf.while_loop(lambda index, *_: index < chunks.num_counted, body, begin, parallel_iterations=1)


def _divide(vectors: tf.Tensor, targets_N: tf.Tensor, chunk: int) -> _Chunks:
    """So few chunks as have at most `chunk` positions each, of one size: less than one position a chunk is padding."""
    num_positions, width = targets_N.shape[0], vectors.shape[-1]
    num_chunks = -(-num_positions // chunk)
    size = -(-num_positions // num_chunks)
    order_N = tf.argsort(tf.cast(targets_N < 0, tf.int32), stable=True)
    padding = num_chunks * size - num_positions
    vectors_ND = tf.gather(tf.reshape(vectors, (-1, width)), order_N)
    num_counted = tf.reduce_sum(tf.cast(targets_N >= 0, tf.int32))
    return _Chunks(
        vectors_KCD=tf.reshape(tf.pad(vectors_ND, ((0, padding), (0, 0))), (num_chunks, size, width)),
        targets_KC=tf.reshape(tf.pad(tf.gather(targets_N, order_N), ((0, padding),), constant_values=-1), (num_chunks, size)),
        num_counted=(num_counted + size - 1) // size,
        places_N=tf.argsort(order_N),
    )
