"""The chains of elementwise operations between the matrix products, which on a CPU are compiled apart from those.

Each operation of a chain, as a kernel of its own, reads and writes a whole activation; XLA makes few loops of them. But on a
CPU XLA's matrix products are slower than the graph's (oneDNN), in bfloat16 by far. So within `compiled_apart` XLA compiles
each chain by itself, and its gradient, and leaves the products to the graph. Elsewhere a chain is its operations, as part of
whatever is around it.

Axes: N positions, V tokens, H heads, T queries, S keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from trainer.models.apart import compiled, is_apart
from trainer.models.vectorized import column_sums, narrowed, row_means, row_sums, stretches, widened


def chain(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A chain (tensors and numbers) -> tensor, whose gradient computes from the same arguments again what it needs: between
    the products nothing but these is kept."""
    forward = compiled(function)

    @compiled
    def backward(upstream: tf.Tensor, *arguments: Any) -> list[tf.Tensor]:
        tensors = [each for each in arguments if isinstance(each, tf.Tensor)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            result = function(*arguments)
        return tape.gradient(result, tensors, upstream)

    @functools.wraps(function)
    def call(*arguments: Any) -> tf.Tensor:
        if not is_apart():
            return function(*arguments)

        @tf.custom_gradient
        def apart(*tensors: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
            given = iter(tensors)
            filled = [next(given) if isinstance(each, tf.Tensor) else each for each in arguments]
            return forward(*filled), lambda upstream: backward(upstream, *filled)

        return apart(*(each for each in arguments if isinstance(each, tf.Tensor)))

    return call


@chain
def normalize(x: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor | None, is_centred: bool, epsilon: float) -> tf.Tensor:
    """LayerNorm (Ba et al. 2016) where `is_centred`, otherwise RMSNorm (Zhang and Sennrich 2019), over the last axis:
    computed in float32, and of x's type again."""

    @tf.custom_gradient
    def differentiable(
        x: tf.Tensor, gain: tf.Tensor, *bias: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
        wide, wide_gain = tf.cast(x, tf.float32), tf.cast(gain, tf.float32)
        centred = wide - row_means(wide) if is_centred else wide
        scale = tf.math.rsqrt(row_means(tf.square(centred)) + epsilon)
        normal = centred * scale

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            wide_upstream = tf.cast(upstream, tf.float32)
            by_normal = wide_upstream * wide_gain
            by_x = scale * (by_normal - normal * row_means(by_normal * normal))
            if is_centred:
                by_x -= row_means(by_x)
            by_gain = narrowed(column_sums(wide_upstream * normal), gain.dtype)
            return narrowed(by_x, x.dtype), by_gain, *(narrowed(column_sums(upstream), each.dtype) for each in bias)

        return narrowed(sum((tf.cast(each, tf.float32) for each in bias), normal * wide_gain), x.dtype), gradient

    return differentiable(x, gain) if bias is None else differentiable(x, gain, bias)


def add_bias(x_NC: tf.Tensor, bias_C: tf.Tensor) -> tf.Tensor:
    """x + bias, whose gradient by the bias is summed in float32 and then rounded. TensorFlow's is summed in x's type: in
    bfloat16 it is wrong by a twentieth after 2,048 rows."""
    if x_NC.dtype == tf.float32:
        return tf.nn.bias_add(x_NC, bias_C)
    sums = _compiled_bias_gradient if is_apart() else _bias_gradient

    @tf.custom_gradient
    def differentiable(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        return tf.nn.bias_add(x, bias), lambda upstream: (upstream, sums(upstream))

    return differentiable(x_NC, bias_C)


def _bias_gradient(upstream_NC: tf.Tensor) -> tf.Tensor:
    return narrowed(column_sums(upstream_NC), upstream_NC.dtype)


_compiled_bias_gradient = compiled(_bias_gradient)


@chain
def gelu(x: tf.Tensor, is_approximate: bool) -> tf.Tensor:
    """Hendrycks and Gimpel 2016, arXiv:1606.08415: in the tanh form, or exactly; computed in float32."""
    return narrowed(tf.nn.gelu(widened(x), approximate=is_approximate), x.dtype)


@chain
def gated_gelu(gate: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """What the gate's GELU lets through (Shazeer 2020, arXiv:2002.05202); computed in float32."""
    return narrowed(tf.nn.gelu(widened(gate), approximate=True) * widened(x), x.dtype)


@chain
def gated_silu(gate: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """What the gate's SiLU lets through; computed in float32."""
    return narrowed(tf.nn.silu(widened(gate)) * widened(x), x.dtype)


def masked_softmax(scores_BHTS: tf.Tensor, mask_TS: tf.Tensor, scale: float) -> tf.Tensor:
    """softmax(scores x scale + mask) over the keys: computed in float32, and of the scores' type again. The mask is float32,
    of a shape that spreads over that of the scores."""
    if not is_apart():
        return _masked_softmax(scores_BHTS, mask_TS, scale)

    @tf.custom_gradient
    def apart(scores: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        (probabilities,) = _compiled_masked_softmaxes([scores], [mask], scale)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            (by_scores,) = _compiled_masked_softmax_gradients([probabilities], [upstream], scale)
            # Only T5's mask is learned; elsewhere nobody asks for its gradient, and it is left out of the graph.
            return by_scores, _sum_to_shape(tf.cast(by_scores, tf.float32) / scale, mask.shape)

        return probabilities, gradient

    return apart(scores_BHTS, mask_TS)


def _masked_softmax(scores: tf.Tensor, mask: tf.Tensor, scale: float) -> tf.Tensor:
    shifted = tf.cast(scores, tf.float32)
    if scale != 1.0:
        shifted *= scale
    return narrowed(tf.nn.softmax(shifted + mask), scores.dtype)


def _masked_softmax_gradient(probabilities: tf.Tensor, upstream: tf.Tensor, scale: float) -> tf.Tensor:
    """By the scores, from the probabilities alone: the exponentials are not computed again."""
    p, u = tf.cast(probabilities, tf.float32), tf.cast(upstream, tf.float32)
    return narrowed(p * (u - row_sums(p * u)) * scale, probabilities.dtype)


def _masked_softmaxes(scores: Sequence[tf.Tensor], masks: Sequence[tf.Tensor], scale: float) -> list[tf.Tensor]:
    return [_masked_softmax(each, mask, scale) for each, mask in zip(scores, masks, strict=True)]


def _masked_softmax_gradients(
    probabilities: Sequence[tf.Tensor], upstreams: Sequence[tf.Tensor], scale: float
) -> list[tf.Tensor]:
    return [_masked_softmax_gradient(each, upstream, scale) for each, upstream in zip(probabilities, upstreams, strict=True)]


_compiled_masked_softmaxes = compiled(_masked_softmaxes)
_compiled_masked_softmax_gradients = compiled(_masked_softmax_gradients)


def masked_softmaxes_with_gradients() -> tuple[Callable[..., list[tf.Tensor]], Callable[..., list[tf.Tensor]]]:
    """`masked_softmax` of several (scores, masks, scale), and their gradients by the scores (probabilities, upstreams, scale),
    for a custom gradient to call. XLA compiles all at once, since each compilation takes a tenth of a second."""
    if is_apart():
        return _compiled_masked_softmaxes, _compiled_masked_softmax_gradients
    return _masked_softmaxes, _masked_softmax_gradients


def _sum_to_shape(x: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """The gradient by something of `shape` that was spread over x's shape."""
    x = tf.reduce_sum(x, list(range(len(x.shape) - len(shape))))
    return tf.reduce_sum(x, [axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] != 1], keepdims=True)


def cross_entropy(
    logits_NV: tf.Tensor, labels_N: tf.Tensor, smoothing: float = 0.0, num_classes: int | None = None
) -> tf.Tensor:
    """The cross-entropy (nats) of each label, float32 [N], of logits of any type. With `smoothing` that share of a label's
    weight goes to all classes alike (Szegedy et al. 2016, arXiv:1512.00567, section 7). Of more logits than `num_classes` the
    rest are padding: they count for nothing, and have no gradient."""
    num_classes = num_classes or logits_NV.shape[1]
    if not is_apart():
        return _cross_entropy(tf.cast(logits_NV, tf.float32), labels_N, smoothing, num_classes)

    @tf.custom_gradient
    def apart(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        losses_N, log_sums_N = _compiled_cross_entropy(logits, labels_N, smoothing, num_classes)
        return losses_N, lambda upstream: _cross_entropy_gradient(
            logits, log_sums_N, labels_N, smoothing, upstream, num_classes
        )

    return apart(logits_NV)


def cross_entropy_with_gradient(
    logits_NV: tf.Tensor, labels_N: tf.Tensor, smoothing: float, weights_N: tf.Tensor, num_classes: int | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """What `cross_entropy` returns, and the gradient by the logits, in their type, of its sum with the weights, float32 [N]."""
    num_classes = num_classes or logits_NV.shape[1]
    if is_apart():
        losses_N, log_sums_N = _compiled_cross_entropy(logits_NV, labels_N, smoothing, num_classes)
        return losses_N, _cross_entropy_gradient(logits_NV, log_sums_N, labels_N, smoothing, weights_N, num_classes)
    # One operation: the losses, and by the logits probabilities less the labels' own.
    logits = _without_padding(tf.cast(logits_NV, tf.float32), num_classes)
    losses_N, by_logits_NV = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=labels_N)
    if smoothing:
        losses_N = (1.0 - smoothing) * losses_N + smoothing * _even_cross_entropy(logits, num_classes)
        by_logits_NV += smoothing * (tf.one_hot(labels_N, logits.shape[1]) - _even_weights(logits, num_classes))
    return losses_N, tf.cast(by_logits_NV * weights_N[:, None], logits_NV.dtype)


def _cross_entropy(logits_NV: tf.Tensor, labels_N: tf.Tensor, smoothing: float, num_classes: int) -> tf.Tensor:
    logits_NV = _without_padding(logits_NV, num_classes)
    losses_N = tf.nn.sparse_softmax_cross_entropy_with_logits(labels_N, logits_NV)
    if smoothing:
        losses_N = (1.0 - smoothing) * losses_N + smoothing * _even_cross_entropy(logits_NV, num_classes)
    return losses_N


def _without_padding(logits_NV: tf.Tensor, num_classes: int) -> tf.Tensor:
    """What stands after the classes becomes as unlikely as can be."""
    if logits_NV.shape[1] <= num_classes:
        return logits_NV
    return tf.where(tf.range(logits_NV.shape[1]) < num_classes, logits_NV, tf.float32.min)


def _even_weights(logits_NV: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Of each class the same, and of padding none: float32 [V]."""
    return tf.cast(tf.range(logits_NV.shape[1]) < num_classes, tf.float32) / num_classes


def _even_cross_entropy(logits_NV: tf.Tensor, num_classes: int) -> tf.Tensor:
    """With the even distribution: the logarithm of the partition function less the mean logit."""
    return tf.reduce_logsumexp(logits_NV, -1) - tf.reduce_sum(logits_NV * _even_weights(logits_NV, num_classes), -1)


@compiled
def _compiled_cross_entropy(
    logits_NV: tf.Tensor, labels_N: tf.Tensor, smoothing: float, num_classes: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The losses, and the logarithms of the partition functions."""
    # A stretch of the rows at a time: XLA takes one loop then for widening and adding their exponentials, and keeps none.
    parts = stretches(logits_NV, 8, axis=1)
    size = parts[0].shape[1]
    wide = [_without_padding(tf.cast(part, tf.float32), num_classes - place * size) for place, part in enumerate(parts)]
    maxima_N1 = tf.reduce_max(functools.reduce(tf.maximum, wide), 1, keepdims=True)
    sums_N = tf.reduce_sum(tf.add_n([tf.exp(part - maxima_N1) for part in wide]), 1)
    log_sums_N = tf.squeeze(maxima_N1, 1) + tf.math.log(sums_N)
    own_N = tf.cast(tf.gather(logits_NV, labels_N, batch_dims=1), tf.float32)
    losses_N = log_sums_N - (1.0 - smoothing) * own_N
    if smoothing:
        losses_N -= smoothing * tf.reduce_sum(tf.cast(logits_NV, tf.float32) * _even_weights(logits_NV, num_classes), -1)
    return losses_N, log_sums_N


@compiled
def _cross_entropy_gradient(
    logits_NV: tf.Tensor,
    log_sums_N: tf.Tensor,
    labels_N: tf.Tensor,
    smoothing: float,
    upstream_N: tf.Tensor,
    num_classes: int,
) -> tf.Tensor:
    """By the logits: probabilities less the label's weight, in one pass."""
    logits = _without_padding(tf.cast(logits_NV, tf.float32), num_classes)
    probabilities = tf.exp(logits - log_sums_N[:, None])
    is_label = tf.range(logits.shape[1])[None] == labels_N[:, None]
    aimed = tf.where(is_label, 1.0 - smoothing, 0.0)
    if smoothing:
        aimed += smoothing * _even_weights(logits, num_classes)
    return narrowed((probabilities - aimed) * upstream_N[:, None], logits_NV.dtype)
