"""What a configuration amounts to before anything is started: the report of `drumline check`, by arithmetic alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.config import ENCODER_DECODERS, BatchPlan, Config, FoldsConfig, ModelConfig, PrivacyConfig, plan_batches
from trainer.data.manifest import MANIFEST_NAME, Split, StoreManifest, read_manifest_of
from trainer.models.parameters import Parameter, query_blocks
from trainer.optimizers.slots import num_slot_elements
from trainer.privacy.budget import plan_budget
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_flops_per_token, run_parameters

_OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "lamb": "LAMB", "adafactor": "Adafactor", "lion": "Lion", "muon": "Muon"}
PRECISION_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Where nothing says how many tokens there are; the report says that it is a guess.
_GUESSED_VOCABULARY = {"character": 256, "pretrained": 32_768}


def report(config: Config, num_replicas: int) -> str:
    """Parameters, memory, batches and epochs, as lines for a terminal.

    Raises ConfigError where the batch does not divide, DataError where the store is damaged or was made with other settings.
    """
    sizes, origin, manifest = find_sizes(config)
    weights = run_parameters(config, sizes)
    plan = plan_batches(config.train, num_replicas)

    lines = [("run", f"{Path(config.run.directory) / config.run.name}, {config.train.steps:,} steps")]
    lines.append(("vocabulary", f"{sizes.vocabulary_size:,} tokens, {origin}"))
    lines.append(("parameters", _describe_parameters(weights)))
    lines += _describe_memory(config, estimate_memory(config, plan, weights, sizes.vocabulary_size))
    lines += describe_batches(config, plan)
    lines += _describe_data(config, manifest)
    if config.privacy is not None:
        lines.append(("privacy", _describe_privacy(config, config.privacy, manifest)))
    flops = run_flops_per_token(config, sizes)
    num_tokens = config.train.steps * plan.global_batch_size * tokens_of_row(config)
    lines.append(("computation", f"{flops:,} FLOPs a token, {flops * num_tokens:.3g} FLOPs for the run"))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines)


def find_sizes(config: Config) -> tuple[Sizes, str, StoreManifest | None]:
    """What of the model's size the data decide, how the vocabulary is known, and the store's manifest where it is prepared.

    Raises DataError where the store is damaged or was made with other settings.
    """
    is_prepared = (Path(config.data.store) / MANIFEST_NAME).exists()
    manifest = read_manifest_of(config) if is_prepared else None
    vocabulary_size, origin = _vocabulary(config, manifest)
    labels = manifest.labels if manifest is not None else config.data.labels or ()
    return Sizes(vocabulary_size, len(labels)), origin, manifest


@dataclass(frozen=True)
class Memory:
    """Bytes on each replica, of what training holds at its fullest."""

    weights: int
    gradients: int
    moments: int
    compute_copies: int
    activations: int
    average: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average + self.compute_copies + self.activations


def estimate_memory(config: Config, plan: BatchPlan, weights: dict[str, Parameter], vocabulary_size: int) -> Memory:
    """Weights, gradients, the optimizer's moments (`slot_shapes`) and the weights' average are float32, whatever the
    precision; the latter adds a copy to compute with. All but the weights are only of those that are trained; where
    micro-batches are added up there are two gradients: the sum, and that of the micro-batch.

    Activations are those that the backward pass needs, of one micro-batch of R rows of T tokens, in the computation's
    precision, as `_row_activations` counts them; and, where the task scores tokens, logits and their gradient in float32
    (2 V), of so many positions as `train.loss_chunk_tokens` has at once. Mixup computes two rows for one. What a compiler keeps
    beside them, or saves, is not counted: take it as the order of magnitude.
    """
    elements = sum(weight.num_elements for weight in weights.values())
    trained = sum(weight.num_elements for weight in weights.values() if weight.is_trainable)
    size = PRECISION_BYTES[config.train.precision]
    rows = plan.rows_per_micro_batch * (2 if config.data.augmentation.mixup else 1)
    activations = rows * size * _row_activations(config.model, config.data.sequence_length, config.target_length)
    if config.task not in ("classification", "question_answering"):
        scored = rows * (config.target_length if config.model.family in ENCODER_DECODERS else config.data.sequence_length)
        num_tokens = max(vocabulary_size, config.model.vocabulary_size or 0)
        activations += 4 * 2 * num_tokens * (config.loss_chunk(scored, num_tokens) or scored)
    num_held = 1 if config.privacy is None else plan.rows_per_micro_batch  # private training holds that of each row
    return Memory(
        weights=4 * elements,
        gradients=4 * trained * (num_held + (1 if plan.num_micro_batches > 1 else 0)),
        moments=4
        * num_slot_elements(config.optimizer, weights.values(), plan.num_replicas if config.train.shard_optimizer else 1),
        compute_copies=size * elements if size < 4 else 0,
        activations=activations,
        average=4 * trained if config.train.average_decay is not None else 0,
    )


def _row_activations(model: ModelConfig, length: int, target_length: int) -> int:
    """How many numbers of a row of T tokens are kept: what each layer keeps, and what comes before or after all of a side with
    its normalization (2 D). Where blocks are computed again (`model.recompute`) a layer keeps its input (D), but for the one
    that is being computed."""
    if model.family == "bag_of_embeddings":
        return length * model.width
    encoder_layer = _layer_activations(model, length, is_causal=model.family == "gpt")
    ends, inputs = 2 * length * model.width, model.num_layers * length * model.width
    if model.family not in ENCODER_DECODERS:
        return ends + (inputs + encoder_layer if model.recompute == "blocks" else model.num_layers * encoder_layer)
    decoder_layer = _decoder_layer_activations(model, length, target_length)
    ends, inputs = ends + 2 * target_length * model.width, inputs + model.decoder_layers * target_length * model.width
    if model.recompute == "blocks":
        return ends + inputs + max(encoder_layer, decoder_layer)
    return ends + model.num_layers * encoder_layer + model.decoder_layers * decoder_layer


def _decoder_layer_activations(model: ModelConfig, length: int, target_length: int) -> int:
    """Of a row: beside `_layer_activations` of its own tokens what the look of each at the source takes, residual and
    normalization (2 D), query and output (2 H W), and probabilities (H T); and keys and values of the source (2 K W)."""
    look = 2 * model.width + 2 * model.attention_width + model.num_heads * length
    of_source = length * 2 * model.key_value_heads * model.head_width
    return _layer_activations(model, target_length, is_causal=True) + target_length * look + of_source


def _layer_activations(model: ModelConfig, length: int, *, is_causal: bool) -> int:
    """Of a row's tokens: two residuals and their normalizations (4 D), queries, keys and values ((H + 2 K) W), the attention's
    output (H W), what goes into the activation function and what comes out (F_in + F); and the attention's probabilities,
    for each head those of the keys that a token's block is held against (T where not causal)."""
    heads = 2 * model.num_heads + 2 * model.key_value_heads
    into_activation = model.hidden_width * (2 if model.is_gated else 1)
    of_token = 4 * model.width + heads * model.head_width + into_activation + model.hidden_width
    blocks = query_blocks(model, length) if is_causal else [(0, length)]
    return length * of_token + model.num_heads * sum((end - begin) * end for begin, end in blocks)


def _vocabulary(config: Config, manifest: StoreManifest | None) -> tuple[int, str]:
    """The number of tokens, and how it is known."""
    tokenizer = config.data.tokenizer
    if manifest is not None:
        return manifest.vocabulary_size, "as the store has them"
    if tokenizer.vocabulary_size is not None:
        return tokenizer.vocabulary_size, "as configured; training on little text may find fewer"
    size = _pretrained_size(Path(tokenizer.path)) if tokenizer.path is not None else None
    if size is not None:
        return size, f"as {tokenizer.path} has them"
    return _GUESSED_VOCABULARY[tokenizer.kind], f"a guess: `prepare` will tell what a {tokenizer.kind} tokenizer has"


def _pretrained_size(path: Path) -> int | None:
    """The number of tokens in a tokenizer's file or folder; None where it is not of a usual form, which `prepare` judges."""
    try:
        if path.is_file():
            return _size_of_json(path)
        if (path / "tokenizer.json").exists():
            return _size_of_json(path / "tokenizer.json")
        if (path / "vocab.txt").exists():
            return len((path / "vocab.txt").read_bytes().splitlines())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _size_of_json(path: Path) -> int | None:
    content = json.loads(path.read_bytes())
    tokens = {token["id"] for token in content.get("added_tokens", [])}
    vocabulary = content["model"]["vocab"]
    # A mapping from token to number, or, for Unigram, a list.
    tokens |= set(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
    return max(tokens) + 1 if tokens else None


def _describe_parameters(weights: dict[str, Parameter]) -> str:
    total = sum(weight.num_elements for weight in weights.values())
    embedding = sum(weight.num_elements for name, weight in weights.items() if "embedding" in name)
    trained = sum(weight.num_elements for weight in weights.values() if weight.is_trainable)
    told = f"{total:,}, of which {embedding:,} in embeddings"
    return told if trained == total else f"{told}; {trained:,} are trained"


def _describe_memory(config: Config, memory: Memory) -> list[tuple[str, str]]:
    parts = [f"{name} {amount(num_bytes)}" for name, num_bytes in memory_parts(config, memory).items()]
    return [("memory", f"about {amount(memory.total)} on each replica: {', '.join(parts)}")]


def memory_parts(config: Config, memory: Memory) -> dict[str, int]:
    """Bytes by what they are of; without what there is none of."""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        f"{_OPTIMIZERS[config.optimizer.kind]}'s moments": memory.moments,
        "the weights' average": memory.average,
        "compute copies": memory.compute_copies,
        "activations": memory.activations,
    }
    return {name: num_bytes for name, num_bytes in parts.items() if num_bytes}


def describe_batches(config: Config, plan: BatchPlan) -> list[tuple[str, str]]:
    """How an update falls on replicas and micro-batches, and how many tokens it has."""
    length = f"{config.data.sequence_length:,}"
    if config.model.family in ENCODER_DECODERS:
        length += f" and {config.target_length:,} tokens"
    replicas = "1 replica" if plan.num_replicas == 1 else f"{plan.num_replicas} replicas"
    micro = "1 micro-batch" if plan.num_micro_batches == 1 else f"{plan.num_micro_batches} micro-batches"
    rows = plan.rows_per_micro_batch
    batch = f"{plan.global_batch_size:,} sequences of {length} = {replicas} x {micro} x {rows} sequences"
    tokens = plan.global_batch_size * tokens_of_row(config)
    amounts = f"{tokens:,} an update, {tokens * config.train.steps:,} in the run"
    return [("batch", batch), ("tokens", amounts if config.packing == "stream" else f"{amounts}, padding included")]


def tokens_of_row(config: Config) -> int:
    """How many tokens a row holds; of an encoder-decoder in source and target."""
    return config.data.sequence_length + (config.target_length if config.model.family in ENCODER_DECODERS else 0)


def _describe_data(config: Config, manifest: StoreManifest | None) -> list[tuple[str, str]]:
    if manifest is None:
        return [("data", f"{config.data.store} is not prepared yet: epochs are known after `drumline prepare`")]
    folds = config.data.folds
    validated = f"{_count(config, manifest, 'validation')} to validate" if folds is None else _describe_fold(folds)
    counts = f"{_count(config, manifest, 'train')} to train on", validated
    lines = [("data", f"{config.data.store}: {', '.join(counts)}")]
    packed = [dataset.rows for dataset in manifest.train if dataset.rows is not None]
    if packed:
        share = sum(rows.num_real_tokens for rows in packed) / max(1, sum(rows.num_places for rows in packed))
        lines.append(("packing", f"{sum(rows.num_rows for rows in packed):,} sequences, of whose tokens {share:.1%} are real"))
    return [*lines, ("epochs", _describe_epochs(config, manifest))]


def _describe_privacy(config: Config, privacy: PrivacyConfig, manifest: StoreManifest | None) -> str:
    num_samples = None if manifest is None else _num_samples(config, manifest)
    if num_samples is None:
        return (
            f"at most epsilon {privacy.epsilon} at delta {privacy.delta:g}" if privacy.epsilon else "known when training starts"
        )
    budget = plan_budget(config, num_samples, None)
    steps = budget.most_updates(config.train.steps)
    ends = f"; epsilon {privacy.epsilon:g} is spent there" if privacy.epsilon and steps < config.train.steps else ""
    return (
        f"epsilon {budget.epsilon(steps):.3f} at delta {privacy.delta:g} after {steps:,} steps{ends}; "
        f"noise {budget.noise_multiplier:g} times the norm {privacy.clip_norm:g}"
    )


def _describe_fold(folds: FoldsConfig) -> str:
    return f"but for fold {folds.held_out} of {folds.number}, counted from 0, which is evaluated"


def _count(config: Config, manifest: StoreManifest, split: Split) -> str:
    tokens = f"{manifest.num_tokens(split):,} tokens"
    return tokens if _reads_documents(config) else f"{manifest.num_documents(split):,} samples ({tokens})"


def _describe_epochs(config: Config, manifest: StoreManifest) -> str:
    num_samples = _num_samples(config, manifest)
    if num_samples is None:
        what = "document" if _reads_documents(config) else "context"
        return f"known when training starts: they depend on the length of each {what}"
    if num_samples == 0:
        return f"none: the store has not even one sequence of {config.data.sequence_length:,} tokens"
    steps = num_samples / config.train.global_batch_size
    return f"{config.train.steps / steps:,.2f} in the run; one takes {steps:,.1f} steps"


def _num_samples(config: Config, manifest: StoreManifest) -> int | None:
    """How many sequences the run is trained on, of folds about; None where that depends on how long each text is."""
    num_all = _num_samples_of_store(config, manifest)
    folds = config.data.folds
    return num_all if num_all is None or folds is None else num_all * (folds.number - 1) // folds.number


def _num_samples_of_store(config: Config, manifest: StoreManifest) -> int | None:
    match config.packing:
        case "stream":
            return manifest.num_samples("train", config.data.sequence_length)
        case "best_fit":
            return sum(dataset.rows.num_rows for dataset in manifest.train if dataset.rows is not None)
        case "none":
            is_one_each = not _reads_documents(config) and config.task != "question_answering"
            return manifest.num_documents("train") if is_one_each else None


def _reads_documents(config: Config) -> bool:
    return config.task in ("language_modeling", "masked_language_modeling")


def amount(num_bytes: float) -> str:
    """Bytes in a unit that leaves one to four digits."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"
