"""All weights of a run: those of its model, of the head that its task puts on it, and which of them are trained. No TensorFlow."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from trainer.config import Config, ModelConfig
from trainer.errors import ConfigError
from trainer.models.parameters import Parameter, parameters
from trainer.sizes import Sizes

# By the names of blocks' matrices, what `model.lora.targets` calls them.
_LORA_TARGETS = {"attention": re.compile(r"\.(cross_)?attention\."), "feed_forward": re.compile(r"\.feed_forward\.")}
_BLOCK = re.compile(r"^(?:(encoder|decoder)\.)?blocks\.(\d+)\.")


def run_parameters(config: Config, sizes: Sizes) -> dict[str, Parameter]:
    """All weights by name, in the order of computation.

    Raises ConfigError where `optimizer.freeze` has a pattern that no weight answers to, or leaves nothing to train.
    """
    trunk = parameters(config.model, sizes.vocabulary_size, config.data.sequence_length)
    if config.task == "classification":
        trunk.pop("output", None)  # scores over the vocabulary are not asked for
    head = dict(_head(config, sizes, trunk))
    if config.model.lora is not None:
        frozen = {name: replace(each, is_trainable=False) for name, each in trunk.items()}
        result = {**frozen, **dict(_low_rank_pairs(config.model, trunk)), **head}
    else:
        result = trunk | head
    result = _freeze(result, config.optimizer.freeze)
    return _slow_down(config, result, set(head))


def is_low_rank(name: str) -> bool:
    """Whether a weight is one of a low-rank pair that stands beside a matrix."""
    return name.endswith((".lora_down", ".lora_up"))


def _head(config: Config, sizes: Sizes, trunk: Mapping[str, Parameter]) -> Iterator[tuple[str, Parameter]]:
    """What comes after the trunk. Matrices begin as the trunk's do; the heads of BERT are those of Devlin et al. 2019."""
    model, width = config.model, config.model.width
    match config.task:
        case "classification":
            if model.family == "bert":
                yield from _linear("pooler", width, width)
            is_one_sigmoid = model.family == "bag_of_embeddings" and sizes.num_labels == 2 and not config.data.multi_label
            outputs = 1 if is_one_sigmoid else sizes.num_labels
            yield from _linear("classifier", width, outputs)
        case "masked_language_modeling":
            yield from _linear("masked.transform", width, width)
            yield "masked.norm.gain", Parameter((width,), "ones")
            yield "masked.norm.bias", Parameter((width,), "zeros")
            yield "masked.bias", Parameter((trunk["token_embedding"].shape[0],), "zeros")
        case "question_answering":
            yield from _linear("span", width, 2)
        case "language_modeling" | "translation" | "summarization":
            pass


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Parameter]]:
    yield f"{name}.kernel", Parameter((inputs, outputs), "normal", math.sqrt(2 / (5 * inputs)))
    yield f"{name}.bias", Parameter((outputs,), "zeros")


def _low_rank_pairs(model: ModelConfig, trunk: Mapping[str, Parameter]) -> Iterator[tuple[str, Parameter]]:
    """A pair for each matrix that is adapted: the one normal, the other zero, so that training begins where the model is."""
    assert model.lora is not None
    for name, parameter in trunk.items():
        matrix = name.removesuffix(".kernel")
        if matrix != name and any(_LORA_TARGETS[target].search(name) for target in model.lora.targets):
            inputs, outputs = parameter.shape
            rank = model.lora.rank
            yield f"{matrix}.lora_down", Parameter((inputs, rank), "normal", inputs**-0.5)
            yield f"{matrix}.lora_up", Parameter((rank, outputs), "zeros")


def _freeze(weights: dict[str, Parameter], patterns: tuple[str, ...]) -> dict[str, Parameter]:
    for number, pattern in enumerate(patterns):
        found = fnmatch.filter(weights, pattern)
        if not found:
            raise ConfigError(
                f"optimizer.freeze[{number}]: got {pattern!r}, which no weight answers to; the model has {', '.join(weights)}"
            )
        weights = weights | {name: replace(weights[name], is_trainable=False) for name in found}
    if not any(each.is_trainable for each in weights.values()):
        raise ConfigError("optimizer.freeze: got patterns that leave nothing to train; leave out one")
    return weights


def _slow_down(config: Config, weights: dict[str, Parameter], head: set[str]) -> dict[str, Parameter]:
    """Each layer's learning rate is `layer_decay` times that of the one above it; an encoder's last layer lies below the
    first of its decoder, the embeddings below all, and what is above the last layer learns at the full rate."""
    decay, model = config.optimizer.layer_decay, config.model
    if decay == 1.0:
        return weights
    encoder_layers = model.num_layers
    is_pair = any(name.startswith("decoder.") for name in weights)
    num_layers = encoder_layers + (model.decoder_layers if is_pair else 0)

    def depth(name: str) -> int:
        found = _BLOCK.match(name)
        if found:
            return 1 + int(found[2]) + (encoder_layers if found[1] == "decoder" else 0)
        if name.startswith("encoder.final"):
            return encoder_layers
        is_embedding = name.endswith("embedding") or name.startswith("embedding_norm") or "relative_positions" in name
        return 0 if is_embedding and name not in head else num_layers + 1

    return {name: replace(each, rate_scale=decay ** (num_layers + 1 - depth(name))) for name, each in weights.items()}
