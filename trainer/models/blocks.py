"""The blocks that all model families are built from, as pure functions of weights and activations.

Axes in names: B batch, T time (tokens), S time of keys (cache), D width, H query heads, K key/value heads, W width of a head,
F width of the feed-forward layer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.config import ModelConfig

Weights = Mapping[str, tf.Tensor]

MASKED = -1e9  # added to a score that must not count; finite, so that a row that is masked throughout stays finite too


@dataclass(frozen=True)
class DropoutKey:
    """What the dropout masks of a micro-batch are a function of: the run's seed, the step, and the row of the global batch
    at which the micro-batch begins. So a row's mask does not depend on the replica or the micro-batch it falls on."""

    seed: tf.Tensor  # int64 [2]: the run's seed, the step
    first_row: tf.Tensor  # int64 []


@tf.custom_gradient
def embed(table_VD: tf.Tensor, tokens_BT: tf.Tensor) -> tf.Tensor:
    """Rows of a table, with a dense gradient: IndexedSlices would be concatenated with a tied output's gradient, and sent
    between replicas by an all-gather that grows with their number."""

    def gradient(upstream_BTD: tf.Tensor) -> tuple[tf.Tensor, None]:
        rows = tf.reshape(upstream_BTD, (-1, table_VD.shape[1]))
        return tf.math.unsorted_segment_sum(rows, tf.reshape(tokens_BT, (-1,)), table_VD.shape[0]), None

    return tf.gather(table_VD, tokens_BT), gradient


def linear(weights: Weights, name: str, x_BTD: tf.Tensor) -> tf.Tensor:
    """x @ kernel + bias, as one matrix product over all rows."""
    kernel = weights[f"{name}.kernel"]
    shape = [*_shape(x_BTD)[:-1], kernel.shape[1]]
    y = tf.matmul(tf.reshape(x_BTD, (-1, kernel.shape[0])), kernel)
    if f"{name}.bias" in weights:
        y = tf.nn.bias_add(y, weights[f"{name}.bias"])
    return tf.reshape(y, shape)


def normalize(model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor) -> tf.Tensor:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019), computed in float32."""
    x = tf.cast(x_BTD, tf.float32)
    if model.normalization == "layer_norm":
        x -= tf.reduce_mean(x, -1, keepdims=True)
    x *= tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + model.normalization_epsilon)
    x *= tf.cast(weights[f"{name}.gain"], tf.float32)
    if f"{name}.bias" in weights:
        x += tf.cast(weights[f"{name}.bias"], tf.float32)
    return tf.cast(x, x_BTD.dtype)


def dropout(x: tf.Tensor, rate: float, key: DropoutKey | None, site: int) -> tf.Tensor:
    """Zeros a share of x's elements and scales up the rest; `site` numbers the places in the model where it happens.

    The mask is a stretch of one counter-based random stream (Philox; Salmon et al. 2011), entered at the first row's place.
    """
    if rate == 0.0 or key is None:
        return x
    row_elements = math.prod(x.shape[1:])
    # Philox yields four words a block, and a row begins a block of its own. Half a word an element is enough: rates are
    # rounded to 1/65536. Bits, not floats, since the graph makes floats of the lower bits and XLA of the upper ones; and
    # taken apart by a bitcast, since XLA would otherwise run the generator again for each element of a fused loop.
    blocks_per_row = -(-row_elements // 8)
    stream_key = tf.bitcast(key.seed[0] * 1_000_003 + site, tf.uint64)
    counter = tf.bitcast(tf.stack([key.first_row * blocks_per_row, key.seed[1]]), tf.uint64)
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=(x.shape[0], blocks_per_row * 4), key=stream_key[None], counter=counter, alg=1, dtype=tf.uint32
    )
    numbers = tf.reshape(tf.bitcast(words, tf.uint16), (x.shape[0], blocks_per_row * 8))[:, :row_elements]
    threshold = min(round(rate * 2**16), 2**16 - 1)
    keep = tf.reshape(numbers >= tf.constant(threshold, tf.uint16), x.shape)
    return tf.where(keep, x / (1.0 - threshold / 2**16), tf.zeros_like(x))


def rotate(x_BHTW: tf.Tensor, positions_BT: tf.Tensor, base: float) -> tf.Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), the halves paired as Llama pairs them."""
    half = x_BHTW.shape[-1] // 2
    frequencies = tf.pow(base, -tf.range(half, dtype=tf.float32) / half)
    angles = tf.cast(positions_BT, tf.float32)[:, None, :, None] * frequencies
    cosine, sine = tf.cos(angles), tf.sin(angles)
    left, right = tf.split(tf.cast(x_BHTW, tf.float32), 2, -1)
    rotated = tf.concat([left * cosine - right * sine, right * cosine + left * sine], -1)
    return tf.cast(rotated, x_BHTW.dtype)


def queries_keys_values(
    model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor, positions_BT: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Queries [B, H, T, W], keys and values [B, K, T, W], positions applied."""
    width, heads, pairs = model.head_width, model.num_heads, model.key_value_heads
    batch, time = _shape(x_BTD)[:2]
    joint = linear(weights, f"{name}.query_key_value", x_BTD)
    if heads == pairs:
        query, key, value = tf.unstack(tf.transpose(tf.reshape(joint, (batch, time, 3, heads, width)), (2, 0, 3, 1, 4)))
    else:
        joint = tf.transpose(tf.reshape(joint, (batch, time, heads + 2 * pairs, width)), (0, 2, 1, 3))
        query, key, value = tf.split(joint, (heads, pairs, pairs), 1)
    if model.positions == "rotary":
        query, key = (rotate(part, positions_BT, model.rotary_base) for part in (query, key))
    return query, key, value


def attend(
    model: ModelConfig,
    query_BHTW: tf.Tensor,
    key_BKSW: tf.Tensor,
    value_BKSW: tf.Tensor,
    mask_TS: tf.Tensor,
    dropout_key: DropoutKey | None = None,
    site: int = 0,
) -> tf.Tensor:
    """Scaled dot-product attention [B, T, D]; query heads that share a key head are computed in one product.

    `mask_TS`, float32, is added to the scores: 0 where a query may look, a large negative number elsewhere; [T, S], or
    [B, 1, T, S] where rows differ. The softmax is float32.
    """
    batch, heads, time, width = _shape(query_BHTW)
    groups = heads // model.key_value_heads
    grouped = (batch, model.key_value_heads, groups * time, width)
    query = tf.reshape(query_BHTW, grouped) if groups > 1 else query_BHTW
    scores = tf.cast(tf.matmul(query, key_BKSW, transpose_b=True), tf.float32) * width**-0.5
    if groups > 1:
        scores = tf.reshape(scores, (batch, heads, time, -1))
    probabilities = tf.cast(tf.nn.softmax(scores + mask_TS), value_BKSW.dtype)
    probabilities = dropout(probabilities, model.dropout, dropout_key, site)
    if groups > 1:
        probabilities = tf.reshape(probabilities, (batch, model.key_value_heads, groups * time, -1))
    mixed = tf.matmul(probabilities, value_BKSW)
    if groups > 1:
        mixed = tf.reshape(mixed, (batch, heads, time, width))
    return tf.reshape(tf.transpose(mixed, (0, 2, 1, 3)), (batch, time, heads * width))


def feed_forward(model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor) -> tf.Tensor:
    """Two matrices with GELU between them (the tanh form that GPT-2 uses), or SwiGLU (Shazeer 2020, arXiv:2002.05202)."""
    hidden = linear(weights, f"{name}.up", x_BTD)
    if model.activation == "swiglu":
        gate, up = tf.split(hidden, 2, -1)
        return linear(weights, f"{name}.down", tf.nn.silu(gate) * up)
    return linear(weights, f"{name}.down", tf.nn.gelu(hidden, approximate=True))


def causal_mask(time: int) -> tf.Tensor:
    """[T, T] float32: a token sees itself and what came before it."""
    return tf.constant(np.triu(np.full((time, time), MASKED, np.float32), 1))


def _shape(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Static sizes where they are known, dynamic ones elsewhere."""
    dynamic = tf.shape(x)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(x.shape)]
