"""What a model is made of: the name, shape and beginning of every weight, and the arithmetic of its cost.

No TensorFlow here: `drumline check` counts with the same list that training allocates from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from trainer.config import ModelConfig


@dataclass(frozen=True)
class Parameter:
    """One weight: where it begins, and whether weight decay applies to it (to matrices only).

    `hidden_columns` is of matrices between vectors within the model, not of embeddings, outputs and heads: how many columns
    has each of the matrices that stand side by side in it, such as those of queries, keys and values.
    """

    shape: tuple[int, ...]
    initializer: Literal["normal", "zeros", "ones"]
    standard_deviation: float = 0.0
    is_trainable: bool = True
    rate_scale: float = 1.0  # of its learning rate
    hidden_columns: tuple[int, ...] = ()

    @property
    def decays(self) -> bool:
        return len(self.shape) > 1

    @property
    def is_hidden_matrix(self) -> bool:
        return bool(self.hidden_columns)

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def parameters(
    model: ModelConfig, vocabulary_size: int, sequence_length: int, target_length: int | None = None
) -> dict[str, Parameter]:
    """All weights of the family by name, in the order of computation; what a task puts on it is `tasks.parameters`'.

    `target_length` is that of an encoder-decoder's targets, where it is not the sources'.

    Matrices begin normal with a standard deviation of sqrt(2 / 5 D) (SmallInit; Nguyen and Salazar 2019,
    arXiv:1910.05895), which is GPT-2's 0.02 at its widths and wider where the model is narrower. The projections back into
    the residual stream are narrower by the square root of their number, so that its variance does not grow with depth
    (Radford et al. 2019, section 2.3). T5 begins as `_t5_deviations` says.
    """
    rows = max(vocabulary_size, model.vocabulary_size or 0)
    deviation = 1.0 if model.family == "t5" else matrix_deviation(model.width)
    result = {"token_embedding": _matrix(rows, model.width, deviation)}
    if model.family == "bag_of_embeddings":
        return result
    if model.positions == "learned":
        positions = model.max_positions or max(sequence_length, target_length or 0)
        result["position_embedding"] = _matrix(positions, model.width, deviation)
    match model.family:
        case "gpt":
            for layer in range(model.num_layers):
                result |= _layer(model, f"blocks.{layer}", 2 * model.num_layers)
            result |= normalization(model, "final_norm")
        case "bert":
            if model.token_types:
                result["type_embedding"] = _matrix(model.token_types, model.width, deviation)
            result |= normalization(model, "embedding_norm")
            for layer in range(model.num_layers):
                result |= _layer(model, f"blocks.{layer}", 2 * model.num_layers)
        case "t5" | "encoder_decoder":
            result |= _side(model, "encoder", model.num_layers, 2 * model.num_layers)
            result |= _side(model, "decoder", model.decoder_layers, 3 * model.decoder_layers)
    if not model.tied_output:
        result["output"] = _matrix(rows, model.width, _deviations(model, 1).inner)
    return result


def matrix_deviation(width: int) -> float:
    """The standard deviation at which a matrix begins that reads `width` numbers (SmallInit)."""
    return math.sqrt(2 / (5 * width))


def linear(name: str, inputs: int, outputs: int, deviation: float, *, biases: bool = True) -> dict[str, Parameter]:
    """A matrix, and its bias."""
    result = {f"{name}.kernel": _matrix(inputs, outputs, deviation)}
    if biases:
        result[f"{name}.bias"] = Parameter((outputs,), "zeros")
    return result


def normalization(model: ModelConfig, name: str) -> dict[str, Parameter]:
    """A gain, and a bias where the model's normalization has one."""
    result = {f"{name}.gain": Parameter((model.width,), "ones")}
    if model.normalization == "layer_norm" and model.biases:
        result[f"{name}.bias"] = Parameter((model.width,), "zeros")
    return result


def flops_per_token(
    model: ModelConfig,
    vocabulary_size: int,
    sequence_length: int,
    target_length: int | None = None,
    *,
    scores_tokens: bool = True,
) -> int:
    """Floating-point operations of one token's forward and backward pass, without anything computed again.

    Six for each weight that is multiplied with (two forward, four backward), and 12 * layers * heads * width of a head *
    length for the two products of attention, the masked half counted as is customary (Chowdhery et al. 2022, PaLM,
    appendix B), though most of it is not computed (`query_blocks`). `scores_tokens` says whether the task asks for scores
    over the vocabulary; other heads are too small to count.

    Of an encoder-decoder source and target tokens are counted alike: it is the mean over those of a full row of both. A bag
    of embeddings adds each number up and hands its gradient back.
    """
    if model.family == "bag_of_embeddings":
        return 4 * model.width
    length, targets = sequence_length, target_length or sequence_length
    weights = parameters(model, vocabulary_size, length, targets)
    scores = 6 * weights["token_embedding"].num_elements if scores_tokens else 0
    encoder = _multiplied(weights, "encoder.")
    attention = 12 * model.attention_width
    if model.family == "gpt":
        return 6 * _multiplied(weights, "blocks.") + attention * model.num_layers * length + scores
    if model.family == "bert":
        transform = 6 * model.width**2 if scores_tokens else 0  # of the head for masked tokens
        return 6 * _multiplied(weights, "blocks.") + attention * model.num_layers * length + transform + scores
    # The decoder makes keys and values of the source.
    of_source = sum(each.num_elements for name, each in weights.items() if name.endswith("cross_attention.key_value.kernel"))
    row = length * (6 * (encoder + of_source) + attention * model.num_layers * length)
    row += targets * (6 * (_multiplied(weights, "decoder.") - of_source) + scores)
    row += targets * attention * model.decoder_layers * (targets + length)
    return round(row / (length + targets))


def query_blocks(model: ModelConfig, length: int) -> list[tuple[int, int]]:
    """The blocks of queries (begin, end) by which causal attention over so many tokens is computed: four, but none shorter than
    what a matrix product needs to be fast; and one alone where the mask is learned, with the bias of relative positions."""
    size = length if model.positions == "relative" else max(64, -(-length // 4))
    return [(begin, min(begin + size, length)) for begin in range(0, length, size)]


@dataclass(frozen=True)
class _Deviations:
    """Standard deviations at which a layer's matrices begin, by what they read and write."""

    queries_keys_values: float
    inner: float  # those that read the residual stream: the feed-forward layer's first, the output
    attention_output: float
    feed_forward_output: float


def _deviations(model: ModelConfig, num_residuals: int) -> _Deviations:
    if model.family == "t5":
        return _t5_deviations(model)
    deviation = matrix_deviation(model.width)
    residual = deviation / math.sqrt(num_residuals)
    return _Deviations(deviation, deviation, residual, residual)


def _t5_deviations(model: ModelConfig) -> _Deviations:
    """What keeps the numbers that T5 computes with of the order of 1 (Mesh TensorFlow's beginnings): its embeddings begin
    with a deviation of 1, its matrices with that of one over the square root of what they read.

    Its scores are not scaled by W^-0.5, so queries and keys begin so much narrower, both by W^-0.25, since they are one
    matrix here (T5's own narrow the queries alone: the scores are the same). So do the values; the output makes up for it.
    """
    head = model.head_width**0.25
    return _Deviations(
        queries_keys_values=model.width**-0.5 / head,
        inner=model.width**-0.5,
        attention_output=model.attention_width**-0.5 * head,
        feed_forward_output=model.hidden_width**-0.5,
    )


def _side(model: ModelConfig, side: str, num_layers: int, num_residuals: int) -> dict[str, Parameter]:
    result = {}
    if model.positions == "relative":
        result[f"{side}.relative_positions"] = _matrix(model.relative_buckets, model.num_heads, model.width**-0.5)
    for layer in range(num_layers):
        result |= _layer(model, f"{side}.blocks.{layer}", num_residuals, looks_at_source=side == "decoder")
    return result | normalization(model, f"{side}.final_norm")


def _layer(model: ModelConfig, block: str, num_residuals: int, *, looks_at_source: bool = False) -> dict[str, Parameter]:
    """One layer, of a side with `num_residuals` projections back into the residual stream."""
    width, hidden, attention = model.width, model.hidden_width, model.attention_width
    pairs = model.key_value_heads * model.head_width
    begin = _deviations(model, num_residuals)

    def matrix(name: str, inputs: int, columns: tuple[int, ...], deviation: float) -> dict[str, Parameter]:
        result = linear(f"{block}.{name}", inputs, sum(columns), deviation, biases=model.biases)
        kernel = f"{block}.{name}.kernel"
        return result | {kernel: replace(result[kernel], hidden_columns=columns)}

    result = normalization(model, f"{block}.attention_norm")
    result |= matrix("attention.query_key_value", width, (attention, pairs, pairs), begin.queries_keys_values)
    result |= matrix("attention.output", attention, (width,), begin.attention_output)
    if looks_at_source:
        result |= normalization(model, f"{block}.cross_attention_norm")
        result |= matrix("cross_attention.query", width, (attention,), begin.queries_keys_values)
        result |= matrix("cross_attention.key_value", width, (pairs, pairs), begin.queries_keys_values)
        result |= matrix("cross_attention.output", attention, (width,), begin.attention_output)
    result |= normalization(model, f"{block}.feed_forward_norm")
    result |= matrix("feed_forward.up", width, (hidden, hidden) if model.is_gated else (hidden,), begin.inner)
    return result | matrix("feed_forward.down", hidden, (width,), begin.feed_forward_output)


def _multiplied(weights: dict[str, Parameter], prefix: str) -> int:
    """How many numbers there are in matrices that a token is multiplied with."""
    return sum(each.num_elements for name, each in weights.items() if name.startswith(prefix) and name.endswith("kernel"))


def _matrix(rows: int, columns: int, standard_deviation: float) -> Parameter:
    return Parameter((rows, columns), "normal", standard_deviation)
