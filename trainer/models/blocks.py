"""The blocks that all model families are built from, as pure functions of weights and activations.

Axes in names: B batch, T time (tokens), S time of keys (cache, source), D width, H query heads, K key/value heads, W width of a
head, F width of the feed-forward layer, V vocabulary, R buckets of relative positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from trainer.config import ModelConfig
from trainer.models import elementwise
from trainer.models.lookups import look_up
from trainer.models.products import product

Weights = Mapping[str, tf.Tensor]
Site: TypeAlias = int | tf.Tensor  # the number of a place of dropout, int64 where layers share a trace

MASKED = -1e9  # added to a score that must not count; finite, so that a row that is masked throughout stays finite too


class TokenOutput(NamedTuple):
    """What the scores over the vocabulary are made of: the product of vectors and table, and a bias where there is one."""

    vectors_BTD: tf.Tensor
    table_VD: tf.Tensor
    bias_V: tf.Tensor | None = None


@dataclass(frozen=True)
class DropoutKey:
    """What the dropout masks of a micro-batch are a function of: the run's seed, the step, and the row of the global batch
    at which the micro-batch begins. So a row's mask does not depend on the replica or the micro-batch it falls on."""

    seed: tf.Tensor  # int64 [2]: the run's seed, the step
    first_row: tf.Tensor  # int64 []


def linear(model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor) -> tf.Tensor:
    """x @ kernel + bias, as one matrix product over all rows; and where there is a low-rank pair, x @ down @ up beside it,
    times alpha / rank (Hu et al. 2022, arXiv:2106.09685)."""
    kernel = weights[f"{name}.kernel"]
    shape = [*sizes(x_BTD)[:-1], kernel.shape[1]]
    x = tf.reshape(x_BTD, (-1, kernel.shape[0]))
    y = product(x, kernel)
    if model.lora is not None and f"{name}.lora_down" in weights:
        y += product(product(x, weights[f"{name}.lora_down"]), weights[f"{name}.lora_up"]) * model.lora.scale
    if f"{name}.bias" in weights:
        y = elementwise.add_bias(y, weights[f"{name}.bias"])
    return tf.reshape(y, shape)


def normalize(model: ModelConfig, weights: Weights, name: str, x_BTD: tf.Tensor) -> tf.Tensor:
    """LayerNorm or RMSNorm, as the model has it."""
    gain, bias = weights[f"{name}.gain"], weights.get(f"{name}.bias")
    is_centred = model.normalization == "layer_norm"
    return elementwise.normalize(x_BTD, gain, bias, is_centred, model.normalization_epsilon)


def dropout(x: tf.Tensor, rate: float, key: DropoutKey | None, site: Site) -> tf.Tensor:
    """Zeros a share of x's elements and scales up the rest; `site` numbers the places in the model where it happens."""
    if rate == 0.0 or key is None:
        return x
    return drop(x, *dropout_mask(x.shape, rate, key, site))


def drop(x: tf.Tensor, keep: tf.Tensor, share: float) -> tf.Tensor:
    return tf.where(keep, x / share, tf.zeros_like(x))


def dropout_mask(shape: tf.TensorShape, rate: float, key: DropoutKey, site: Site) -> tuple[tf.Tensor, float]:
    """Which elements of a tensor of this shape `dropout` keeps (bool), and the share that is kept.

    The mask is a stretch of one counter-based random stream (Philox; Salmon et al. 2011), entered at the first row's place.
    """
    row_elements = math.prod(shape[1:])
    # Philox yields four words a block, and a row begins a block of its own. Half a word an element is enough: rates are
    # rounded to 1/65536. Bits, not floats, since the graph makes floats of the lower bits and XLA of the upper ones; and
    # taken apart by a bitcast, since XLA would otherwise run the generator again for each element of a fused loop.
    blocks_per_row = -(-row_elements // 8)
    stream_key = tf.bitcast(key.seed[0] * 1_000_003 + site, tf.uint64)
    counter = tf.bitcast(tf.stack([key.first_row * blocks_per_row, key.seed[1]]), tf.uint64)
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=(shape[0], blocks_per_row * 4), key=stream_key[None], counter=counter, alg=1, dtype=tf.uint32
    )
    numbers = tf.reshape(tf.bitcast(words, tf.uint16), (shape[0], blocks_per_row * 8))[:, :row_elements]
    threshold = min(round(rate * 2**16), 2**16 - 1)
    return tf.reshape(numbers >= tf.constant(threshold, tf.uint16), shape), 1.0 - threshold / 2**16


def segment_means(x_BTD: tf.Tensor, segments_BT: tf.Tensor, num_segments: int) -> tf.Tensor:
    """The mean of each text's vectors, [B, G, D], zeros where a row has no such text.

    Text g of a row is the tokens of segment g + 1 of `segments_BT` (int32; 0 is padding); there are at most `num_segments`.
    """
    belongs_BGT = tf.cast(segments_BT[:, None, :] == tf.range(1, num_segments + 1)[:, None], tf.float32)
    shares_BGT = belongs_BGT / tf.maximum(tf.reduce_sum(belongs_BGT, -1, keepdims=True), 1.0)
    return product(tf.cast(shares_BGT, x_BTD.dtype), x_BTD)


def feed_forward(
    model: ModelConfig,
    weights: Weights,
    name: str,
    x_BTD: tf.Tensor,
    dropout_key: DropoutKey | None = None,
    site: Site = 0,
) -> tf.Tensor:
    """Two matrices with the activation between them; where it has a gate, the first is two side by side, of which the
    activated one multiplies the other (Shazeer 2020, arXiv:2002.05202). With a key there is dropout before the second."""
    hidden = activate(model, linear(model, weights, f"{name}.up", x_BTD))
    hidden = dropout(hidden, model.dropout, dropout_key, site)
    return linear(model, weights, f"{name}.down", hidden)


def activate(model: ModelConfig, x: tf.Tensor) -> tf.Tensor:
    """The activation function. GELU in the tanh form that GPT-2 and T5 use, or exactly, as BERT has it. Where there is a gate,
    it is the first half of `x`, and what it lets through the second."""
    match model.activation:
        case "gelu":
            return elementwise.gelu(x, True)
        case "gelu_erf":
            return elementwise.gelu(x, False)
        case "relu":
            return tf.nn.relu(x)
        case "gated_gelu":
            return elementwise.gated_gelu(*tf.split(x, 2, -1))
        case "swiglu":
            return elementwise.gated_silu(*tf.split(x, 2, -1))


def token_scores(output: TokenOutput) -> tf.Tensor:
    """Scores over the vocabulary, [B, T, V]: float32 whatever the precision of the product, as a softmax over them follows."""
    vectors_BTD, table_VD, _ = output
    return tf.reshape(tf.cast(flat_scores(output), tf.float32), (-1, sizes(vectors_BTD)[1], table_VD.shape[0]))


def flat_scores(output: TokenOutput) -> tf.Tensor:
    """The scores as the product leaves them, in its precision, but for a bias, which is added in float32: [B T, V]."""
    vectors_BTD, table_VD, bias_V = output
    scores = product(tf.reshape(vectors_BTD, (-1, table_VD.shape[1])), table_VD, transpose_b=True)
    return scores if bias_V is None else tf.cast(scores, tf.float32) + tf.cast(bias_V, tf.float32)


def causal_mask(time: int | tf.Tensor) -> tf.Tensor:
    """[T, T] float32: a token sees itself and what came before it."""
    if isinstance(time, tf.Tensor):
        return tf.where(tf.range(time)[None] > tf.range(time)[:, None], MASKED, 0.0)
    return tf.constant(np.triu(np.full((time, time), MASKED, np.float32), 1))


def segment_mask(query_segments_BT: tf.Tensor, key_segments_BS: tf.Tensor) -> tf.Tensor:
    """[B, 1, T, S] float32: a token sees those of its own text, and padding (segment 0) is never seen."""
    same = (query_segments_BT[:, :, None] == key_segments_BS[:, None, :]) & (key_segments_BS[:, None, :] > 0)
    return tf.where(same, 0.0, MASKED)[:, None]


def learned_positions(weights: Weights, time: int | tf.Tensor, positions_BT: tf.Tensor | None) -> tf.Tensor:
    """Rows of the table of positions: [T, D] where all rows of the batch count from 0, [B, T, D] where positions are given."""
    table = weights["position_embedding"]
    return table[:time] if positions_BT is None else look_up(table, positions_BT)


def sinusoidal_positions(positions_BT: tf.Tensor, width: int) -> tf.Tensor:
    """Sines, then cosines, of the positions at geometrically falling frequencies (Vaswani et al. 2017, arXiv:1706.03762,
    section 3.5; there they alternate, which is the same to a matrix): float32 [B, T, D]."""
    half = (width + 1) // 2
    frequencies = tf.constant(10_000.0 ** (-np.arange(half) / half), tf.float32)
    angles = tf.cast(positions_BT, tf.float32)[:, :, None] * frequencies
    return tf.concat([tf.sin(angles), tf.cos(angles)], -1)[:, :, :width]


def relative_buckets(model: ModelConfig, distances: np.ndarray, *, causal: bool) -> np.ndarray:
    """The bucket of each distance (place of the key less place of the query), int32: one for each short distance, and
    logarithmically wider ones up to `relative_distance`, beyond which all are in the last (Raffel et al. 2020, section 2.1).

    Causal, all buckets are for keys that lie before; else half of them, and half for those after. The logarithm is float32,
    as in Mesh TensorFlow's `_relative_position_bucket`: elsewhere a distance at a bucket's edge might fall to the other side.
    """
    num_buckets = model.relative_buckets if causal else model.relative_buckets // 2
    offsets = 0 if causal else np.where(distances > 0, num_buckets, 0)
    away = np.maximum(-distances, 0) if causal else np.abs(distances)
    num_exact = num_buckets // 2
    steps = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(num_exact))
    steps = steps / np.float32(math.log(model.relative_distance / num_exact)) * np.float32(num_buckets - num_exact)
    wide = np.minimum(num_exact + steps.astype(np.int32), num_buckets - 1)
    return (offsets + np.where(away < num_exact, away, wide)).astype(np.int32)


def relative_bias(
    model: ModelConfig, table_RH: tf.Tensor, query_places_T: tf.Tensor, key_places_S: tf.Tensor, *, causal: bool
) -> tf.Tensor:
    """What T5 adds to the scores of each head, by how far a key's place in the row is from the query's: float32 [H, T, S].

    It is the same for all rows, also where texts are packed: within a text distances are what they are alone.
    """
    farthest = model.relative_distance  # beyond it all are in one bucket
    buckets = tf.constant(relative_buckets(model, np.arange(-farthest, farthest + 1), causal=causal))
    distances_TS = tf.clip_by_value(key_places_S[None] - query_places_T[:, None], -farthest, farthest)
    bias_TSH = look_up(table_RH, tf.gather(buckets, distances_TS + farthest))
    return tf.cast(tf.transpose(bias_TSH, (2, 0, 1)), tf.float32)


def write_places(cached_BKSW: tf.Tensor, new_BKTW: tf.Tensor, place: tf.Tensor | int) -> tf.Tensor:
    """A cache with `new_BKTW` in the places from `place` on. One token may go to any place, several only to a place that is
    known when the graph is built: so the cache's shape stays as static as it was."""
    if new_BKTW.shape[2] == 1:
        return tf.where(tf.range(sizes(cached_BKSW)[2])[:, None] == place, new_BKTW, cached_BKSW)
    assert isinstance(place, int)
    end = place + sizes(new_BKTW)[2]
    return tf.concat([cached_BKSW[:, :, :place], new_BKTW, cached_BKSW[:, :, end:]], 2)


def cache_masks(mask_BS: tf.Tensor, is_padding_BT: tf.Tensor, place: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
    """A cache's mask once T more tokens stand in the places from `place` on, and what each of them may look at,
    [B, 1, T, S]: itself and what came before it, but no padding."""
    mask_BT = tf.where(is_padding_BT, MASKED, 0.0)
    mask_BS = tf.squeeze(write_places(mask_BS[:, None, :, None], mask_BT[:, None, :, None], place), (1, 3))
    places = tf.range(sizes(is_padding_BT)[1]) + place
    later_TS = tf.where(tf.range(sizes(mask_BS)[1])[None] > places[:, None], MASKED, 0.0)
    return mask_BS, mask_BS[:, None, None, :] + later_TS


def sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Static sizes where they are known, dynamic ones elsewhere."""
    if x.shape.is_fully_defined():
        return list(x.shape)
    dynamic = tf.shape(x)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(x.shape)]
