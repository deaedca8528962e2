"""What a model is made of: the name, shape and beginning of every weight, and the arithmetic of its cost.

No TensorFlow here: `drumline check` counts with the same list that training allocates from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trainer.config import ModelConfig


@dataclass(frozen=True)
class Parameter:
    """One weight: where it begins, and whether weight decay applies to it (to matrices only)."""

    shape: tuple[int, ...]
    initializer: Literal["normal", "zeros", "ones"]
    standard_deviation: float = 0.0

    @property
    def decays(self) -> bool:
        return len(self.shape) > 1

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def parameters(model: ModelConfig, vocabulary_size: int, sequence_length: int) -> dict[str, Parameter]:
    """All weights by name, in the order of computation.

    Matrices begin normal with a standard deviation of sqrt(2 / 5 D) (SmallInit; Nguyen and Salazar 2019,
    arXiv:1910.05895), which is GPT-2's 0.02 at its widths and wider where the model is narrower. The projections back into
    the residual stream are narrower by the square root of their number, so that its variance does not grow with depth
    (Radford et al. 2019, section 2.3).
    """
    width, hidden = model.width, model.hidden_width
    heads = model.num_heads + 2 * model.key_value_heads
    activation_width = 2 * hidden if model.activation == "swiglu" else hidden
    deviation = math.sqrt(2 / (5 * width))
    residual = deviation / math.sqrt(2 * model.num_layers)

    result = {"token_embedding": _matrix(vocabulary_size, width, deviation)}
    if model.positions == "learned":
        result["position_embedding"] = _matrix(sequence_length, width, deviation)
    for layer in range(model.num_layers):
        block = f"blocks.{layer}"
        result |= _normalization(model, f"{block}.attention_norm")
        result |= _linear(model, f"{block}.attention.query_key_value", width, heads * model.head_width, deviation)
        result |= _linear(model, f"{block}.attention.output", width, width, residual)
        result |= _normalization(model, f"{block}.feed_forward_norm")
        result |= _linear(model, f"{block}.feed_forward.up", width, activation_width, deviation)
        result |= _linear(model, f"{block}.feed_forward.down", hidden, width, residual)
    result |= _normalization(model, "final_norm")
    if not model.tied_output:
        result["output"] = _matrix(vocabulary_size, width, deviation)
    return result


def flops_per_token(model: ModelConfig, vocabulary_size: int, sequence_length: int) -> int:
    """Floating-point operations of one token's forward and backward pass, without anything computed again.

    Six for each weight that is multiplied with (two forward, four backward), and 12 * layers * width * length for the two
    products of attention, the masked half counted as is customary (Chowdhery et al. 2022, PaLM, appendix B).
    """
    weights = parameters(model, vocabulary_size, sequence_length)
    multiplied = sum(weight.num_elements for name, weight in weights.items() if weight.decays and "embedding" not in name)
    if model.tied_output:
        multiplied += vocabulary_size * model.width
    return 6 * multiplied + 12 * model.num_layers * model.width * sequence_length


def _matrix(rows: int, columns: int, standard_deviation: float) -> Parameter:
    return Parameter((rows, columns), "normal", standard_deviation)


def _linear(model: ModelConfig, name: str, inputs: int, outputs: int, deviation: float) -> dict[str, Parameter]:
    result = {f"{name}.kernel": _matrix(inputs, outputs, deviation)}
    if model.biases:
        result[f"{name}.bias"] = Parameter((outputs,), "zeros")
    return result


def _normalization(model: ModelConfig, name: str) -> dict[str, Parameter]:
    result = {f"{name}.gain": Parameter((model.width,), "ones")}
    if model.normalization == "layer_norm" and model.biases:
        result[f"{name}.bias"] = Parameter((model.width,), "zeros")
    return result
