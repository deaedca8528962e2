"""Causal attention by blocks of queries, each held against the keys up to its end alone: of the scores that the mask would hide
most are neither computed nor kept, as FlashAttention-2 leaves them out (Dao 2023, arXiv:2307.08691, section 3.1.1).

Axes as in `blocks`; t are the queries of a block, s the keys up to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models.blocks import DropoutKey, Site, drop, dropout_mask, sizes
from trainer.models.elementwise import masked_softmaxes_with_gradients
from trainer.models.parameters import query_blocks
from trainer.models.products import product


def causal_attention(
    model: ModelConfig,
    query_BHTW: tf.Tensor,
    key_BKTW: tf.Tensor,
    value_BKTW: tf.Tensor,
    mask_TT: tf.Tensor,
    scale: float,
    dropout_key: DropoutKey | None,
    site: Site,
) -> tf.Tensor:
    """What `attention.attend` computes of a mask that is not learned, before its heads are joined: [B, H, T, W].

    In training, which has a key, the gradient is its own: TensorFlow's fills a tensor of zeros for each slice.
    """
    heads, pairs = model.num_heads, model.key_value_heads
    queries = [slice(*block) for block in query_blocks(model, query_BHTW.shape[2])]
    lengths = [block.stop - block.start for block in queries]
    softmaxes, softmax_gradients = masked_softmaxes_with_gradients()
    masks = [mask_TT[..., block, : block.stop] for block in queries]
    dropped = _dropout(model, query_BHTW, dropout_key, site)

    def mix(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """The values as mixed; the queries and the probabilities of each block."""
        parts = tf.split(query, lengths, 2)
        scores = [
            unfold_heads(product(fold_heads(part, pairs), key[:, :, : block.stop], transpose_b=True), heads)
            for block, part in zip(queries, parts, strict=True)
        ]
        probabilities = softmaxes(scores, masks, scale)
        mixed = [
            unfold_heads(product(fold_heads(dropped(each, block), pairs), value[:, :, : block.stop]), heads)
            for block, each in zip(queries, probabilities, strict=True)
        ]
        return tf.concat(mixed, 2), parts, probabilities

    @tf.custom_gradient
    def differentiable(
        query: tf.Tensor, key: tf.Tensor, value: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
        mixed, parts, probabilities = mix(query, key, value)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            by_value, by_probabilities = [], []
            for block, each, up in zip(queries, probabilities, tf.split(upstream, lengths, 2), strict=True):
                up = fold_heads(up, pairs)
                by_value.append(product(fold_heads(dropped(each, block), pairs), up, transpose_a=True))
                with tf.control_dependencies([upstream]):  # or it would be the slice of before, kept until now
                    values = value[:, :, : block.stop]
                by_chosen = unfold_heads(product(up, values, transpose_b=True), heads)
                by_probabilities.append(dropped(by_chosen, block))  # dropout is its own gradient
            by_query, by_key = [], []
            by_scores = softmax_gradients(probabilities, by_probabilities, scale)
            for block, part, each in zip(queries, parts, by_scores, strict=True):
                each = fold_heads(each, pairs)
                with tf.control_dependencies([upstream]):
                    keys = key[:, :, : block.stop]
                by_query.append(unfold_heads(product(each, keys), heads))
                by_key.append(product(each, fold_heads(part, pairs), transpose_a=True))
            return tf.concat(by_query, 2), _sum_of_beginnings(by_key, lengths), _sum_of_beginnings(by_value, lengths)

        return mixed, gradient

    if dropout_key is None:
        return mix(query_BHTW, key_BKTW, value_BKTW)[0]
    return differentiable(query_BHTW, key_BKTW, value_BKTW)


def _dropout(
    model: ModelConfig, query_BHTW: tf.Tensor, key: DropoutKey | None, site: Site
) -> Callable[[tf.Tensor, slice], tf.Tensor]:
    """(numbers [B, H, t, s], the block's queries) -> what dropout leaves of them: that of a whole row, wherever blocks end."""
    if key is None or model.dropout == 0.0:
        return lambda x_BHts, _: x_BHts
    batch, heads, time, _ = query_BHTW.shape
    keep_BHTT, share = dropout_mask(tf.TensorShape((batch, heads, time, time)), model.dropout, key, site)
    return lambda x_BHts, block: drop(x_BHts, keep_BHTT[:, :, block, : block.stop], share)


def _sum_of_beginnings(parts_BKsW: Sequence[tf.Tensor], lengths: Sequence[int]) -> tf.Tensor:
    """The sum [B, K, T, W] of tensors of which the n-th goes through the first n blocks of these lengths."""
    pieces = [tf.split(part, lengths[: number + 1], 2) for number, part in enumerate(parts_BKsW)]
    return tf.concat([tf.add_n([piece[place] for piece in pieces[place:]]) for place in range(len(lengths))], 2)


def fold_heads(x_BHTX: tf.Tensor, pairs: int) -> tf.Tensor:
    """Query heads that share a key head as one, for one product: [B, K, H/K T, X]."""
    batch, heads, _, last = sizes(x_BHTX)
    return x_BHTX if heads == pairs else tf.reshape(x_BHTX, (batch, pairs, -1, last))


def unfold_heads(x_BKTX: tf.Tensor, heads: int) -> tf.Tensor:
    """As it was before `fold_heads`: [B, H, T, X]."""
    batch, pairs, _, last = sizes(x_BKTX)
    return x_BKTX if heads == pairs else tf.reshape(x_BKTX, (batch, heads, -1, last))
