"""All weights of a run: its model's, those of the head that its task puts on it, and which are trained. No TensorFlow."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from trainer.config import Config, ModelConfig
from trainer.errors import ConfigError
from trainer.models.parameters import Parameter, flops_per_token, linear, matrix_deviation, normalization, parameters
from trainer.sizes import Sizes

# By the names of blocks' matrices, what `model.lora.targets` calls them.
_LORA_TARGETS = {"attention": re.compile(r"\.(cross_)?attention\."), "feed_forward": re.compile(r"\.feed_forward\.")}
_BLOCK = re.compile(r"^(?:(encoder|decoder)\.)?blocks\.(\d+)\.")


def run_parameters(config: Config, sizes: Sizes) -> dict[str, Parameter]:
    """All weights by name, in the order of computation.

    Raises ConfigError where `optimizer.freeze` has a pattern that no weight answers to, or leaves nothing to train.
    """
    trunk = parameters(config.model, sizes.vocabulary_size, config.data.sequence_length, config.target_length)
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


def run_flops_per_token(config: Config, sizes: Sizes) -> int:
    """Floating-point operations of one token's forward and backward pass, the head included where it is large."""
    scores_tokens = config.task not in ("classification", "question_answering")
    length, targets = config.data.sequence_length, config.target_length
    return flops_per_token(config.model, sizes.vocabulary_size, length, targets, scores_tokens=scores_tokens)


def is_low_rank(name: str) -> bool:
    """Whether a weight is one of a low-rank pair that stands beside a matrix."""
    return name.endswith((".lora_down", ".lora_up"))


def _head(config: Config, sizes: Sizes, trunk: Mapping[str, Parameter]) -> Iterator[tuple[str, Parameter]]:
    """What comes after the trunk. Matrices begin as the trunk's do; the heads of BERT are those of Devlin et al. 2019."""
    model, width = config.model, config.model.width
    deviation = matrix_deviation(width)
    match config.task:
        case "classification":
            if model.family == "bert" and model.pooling == "first":
                yield from linear("pooler", width, width, deviation).items()
            is_one_sigmoid = model.family == "bag_of_embeddings" and sizes.num_labels == 2 and not config.data.multi_label
            outputs = 1 if is_one_sigmoid else sizes.num_labels
            yield from linear("classifier", width, outputs, deviation).items()
        case "masked_language_modeling":
            yield from linear("masked.transform", width, width, deviation).items()
            yield from normalization(model, "masked.norm").items()
            yield "masked.bias", Parameter((trunk["token_embedding"].shape[0],), "zeros")
        case "question_answering":
            yield from linear("span", width, 2, deviation).items()
        case "language_modeling" | "translation" | "summarization":
            pass


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
