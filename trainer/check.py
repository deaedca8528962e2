"""What a configuration amounts to before anything is started: the report of `drumline check`, by arithmetic alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.config import BatchPlan, Config, ModelConfig, plan_batches
from trainer.data.manifest import MANIFEST_NAME, StoreManifest, read_matching_manifest
from trainer.models.parameters import Parameter, flops_per_token, parameters

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Where nothing says how many tokens there are; the report says that it is a guess.
_GUESSED_VOCABULARY = {"character": 256, "pretrained": 32_768}


def report(config: Config, num_replicas: int) -> str:
    """Parameters, memory, batches and epochs, as lines for a terminal.

    Raises ConfigError where the batch does not divide, DataError where the store is damaged or was made with other settings.
    """
    store = Path(config.data.store)
    manifest = read_matching_manifest(config.data) if (store / MANIFEST_NAME).exists() else None
    vocabulary_size, origin = _vocabulary(config, manifest)
    weights = parameters(config.model, vocabulary_size, config.data.sequence_length)
    plan = plan_batches(config.train, num_replicas)

    lines = [("run", f"{Path(config.run.directory) / config.run.name}, {config.train.steps:,} steps")]
    lines.append(("vocabulary", f"{vocabulary_size:,} tokens, {origin}"))
    lines.append(("parameters", _describe_parameters(weights)))
    lines += _describe_memory(estimate_memory(config, plan, weights, vocabulary_size))
    lines += _describe_batches(config, plan)
    lines += _describe_data(config, manifest)
    flops = flops_per_token(config.model, vocabulary_size, config.data.sequence_length)
    num_tokens = config.train.steps * plan.global_batch_size * config.data.sequence_length
    lines.append(("computation", f"{flops:,} FLOPs a token, {flops * num_tokens:.3g} FLOPs for the run"))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines)


@dataclass(frozen=True)
class Memory:
    """Bytes on each replica, of what training holds at its fullest."""

    weights: int
    gradients: int
    moments: int
    compute_copies: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.compute_copies + self.activations


def estimate_memory(config: Config, plan: BatchPlan, weights: dict[str, Parameter], vocabulary_size: int) -> Memory:
    """Weights, gradients and AdamW's two moments are float32, whatever the precision; the latter adds a copy to compute
    with. Where micro-batches are added up there are two gradients: the sum, and that of the micro-batch.

    Activations are those that the backward pass needs, of one micro-batch of R rows of T tokens, in the computation's
    precision. For each token: in each of L layers two residuals and their normalizations (4 D), queries, keys and
    values ((H + 2 K) W), the attention's probabilities (H T) and its output (D), what goes into the activation function
    and what comes out (F_in + F); then the last residual and its normalization (2 D), and logits and their gradient in
    float32 (2 V). What a compiler keeps beside them, or saves, is not counted: take it as the order of magnitude.
    """
    elements = sum(weight.num_elements for weight in weights.values())
    size = _BYTES[config.train.precision]
    tokens = plan.rows_per_micro_batch * config.data.sequence_length
    per_token = config.model.num_layers * _layer_activations(config.model, config.data.sequence_length)
    per_token += 2 * config.model.width
    return Memory(
        weights=4 * elements,
        gradients=4 * elements * (2 if plan.num_micro_batches > 1 else 1),
        moments=8 * elements,
        compute_copies=size * elements if size < 4 else 0,
        activations=tokens * (size * per_token + 4 * 2 * vocabulary_size),
    )


def _layer_activations(model: ModelConfig, sequence_length: int) -> int:
    heads = model.num_heads + 2 * model.key_value_heads
    into_activation = model.hidden_width * (2 if model.activation == "swiglu" else 1)
    attention = heads * model.head_width + model.num_heads * sequence_length + model.width
    return 4 * model.width + attention + into_activation + model.hidden_width


def _vocabulary(config: Config, manifest: StoreManifest | None) -> tuple[int, str]:
    """The number of tokens, and how it is known."""
    tokenizer = config.data.tokenizer
    if manifest is not None:
        return manifest.vocabulary_size, "as the store has them"
    if tokenizer.vocabulary_size is not None:
        return tokenizer.vocabulary_size, "as configured; training on little text may find fewer"
    if tokenizer.path is not None and Path(tokenizer.path).is_file():
        size = _pretrained_size(Path(tokenizer.path))
        if size is not None:
            return size, f"as {tokenizer.path} has them"
    return _GUESSED_VOCABULARY[tokenizer.kind], f"a guess: `prepare` will tell what a {tokenizer.kind} tokenizer has"


def _pretrained_size(path: Path) -> int | None:
    """The number of tokens in a `tokenizer.json`; None where it is not of the usual form, which `prepare` judges."""
    try:
        content = json.loads(path.read_bytes())
        tokens = {token["id"] for token in content.get("added_tokens", [])}
        vocabulary = content["model"]["vocab"]
        # A mapping from token to number, or, for Unigram, a list.
        tokens |= set(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return max(tokens) + 1 if tokens else None


def _describe_parameters(weights: dict[str, Parameter]) -> str:
    total = sum(weight.num_elements for weight in weights.values())
    embedding = sum(weight.num_elements for name, weight in weights.items() if "embedding" in name)
    return f"{total:,}, of which {embedding:,} in embeddings"


def _describe_memory(memory: Memory) -> list[tuple[str, str]]:
    parts = [f"weights {amount(memory.weights)}", f"gradients {amount(memory.gradients)}"]
    parts.append(f"AdamW's moments {amount(memory.moments)}")
    if memory.compute_copies:
        parts.append(f"compute copies {amount(memory.compute_copies)}")
    parts.append(f"activations about {amount(memory.activations)}")
    return [("memory", f"about {amount(memory.total)} on each replica: {', '.join(parts)}")]


def _describe_batches(config: Config, plan: BatchPlan) -> list[tuple[str, str]]:
    length = config.data.sequence_length
    replicas = "1 replica" if plan.num_replicas == 1 else f"{plan.num_replicas} replicas"
    micro = "1 micro-batch" if plan.num_micro_batches == 1 else f"{plan.num_micro_batches} micro-batches"
    rows = plan.rows_per_micro_batch
    batch = f"{plan.global_batch_size:,} sequences of {length:,} = {replicas} x {micro} x {rows} sequences"
    tokens = plan.global_batch_size * length
    return [("batch", batch), ("tokens", f"{tokens:,} an update, {tokens * config.train.steps:,} in the run")]


def _describe_data(config: Config, manifest: StoreManifest | None) -> list[tuple[str, str]]:
    if manifest is None:
        return [("data", f"{config.data.store} is not prepared yet: epochs are known after `drumline prepare`")]
    tokens = f"{manifest.num_tokens('train'):,} tokens to train on, {manifest.num_tokens('validation'):,} to validate"
    lines = [("data", f"{config.data.store}: {tokens}")]
    if not config.data.pack:
        lines.append(("epochs", "known when training starts: without `pack` they depend on the length of each document"))
        return lines
    num_samples = manifest.num_samples("train", config.data.sequence_length)
    if num_samples == 0:
        lines.append(("epochs", f"none: the store has not even one sequence of {config.data.sequence_length:,} tokens"))
        return lines
    steps = num_samples / config.train.global_batch_size
    lines.append(("epochs", f"{config.train.steps / steps:,.2f} in the run; one takes {steps:,.1f} steps"))
    return lines


def amount(num_bytes: float) -> str:
    """Bytes in a unit that leaves one to four digits."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"
