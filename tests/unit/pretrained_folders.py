"""Folders in Hugging Face's format, for tests: small random models of `transformers`, saved, and runs that begin from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.config import Config
from trainer.config_io import load_config

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

VOCABULARY_SIZE = 96
LENGTH = 12

CONFIG = """\
run: {name: pretrained, directory: DIRECTORY/runs}
task: TASK
data:
  store: DIRECTORY/store
  format: FORMAT
  train: [{path: DIRECTORY/train.jsonl}]
  sequence_length: 12
MODEL
optimizer: {learning_rate: 1.0e-3}
train: {steps: 4, global_batch_size: 4}
"""

TASKS = {
    "gpt2": "language_modeling",
    "gpt2_untied": "language_modeling",
    "llama": "language_modeling",
    "mistral": "language_modeling",
    "bert": "masked_language_modeling",
    "t5": "translation",
    "t5_1_1": "translation",
}


def random_model(kind: str, seed: int = 0) -> Any:
    """A small model of `transformers` whose weights are all random: gains and biases too, which begin as ones and zeros."""
    sizes = {"vocab_size": VOCABULARY_SIZE, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    match kind:
        case "gpt2" | "gpt2_untied":
            config = transformers.GPT2Config(
                n_embd=32, n_layer=2, n_head=4, n_positions=20, tie_word_embeddings=kind == "gpt2", **sizes
            )
            model = transformers.GPT2LMHeadModel(config)
        case "llama":
            config = transformers.LlamaConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
                tie_word_embeddings=True,
                **sizes,
            )
            model = transformers.LlamaForCausalLM(config)
        case "mistral":
            config = transformers.MistralConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=1,
                head_dim=16,
                sliding_window=None,
                **sizes,
            )
            model = transformers.MistralForCausalLM(config)
        case "bert":
            config = transformers.BertConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=16,
                **sizes,
            )
            model = transformers.BertForMaskedLM(config)
        case "t5" | "t5_1_1":
            new = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind == "t5_1_1" else {}
            config = transformers.T5Config(
                d_model=32,
                d_kv=12,
                d_ff=40,
                num_layers=2,
                num_decoder_layers=1,
                num_heads=3,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=10,
                decoder_start_token_id=0,
                **sizes,
                **new,
            )
            model = transformers.T5ForConditionalGeneration(config)
    return randomize(model, seed).eval()


def randomize(model: Any, seed: int) -> Any:
    """All weights of the order of what training makes of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_gain = weight.dim() == 1 and name.endswith("weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if weight.dim() > 1 else 0.1) + is_gain)
    return model


def run_of(folder: Path, directory: Path, task: str, extra: str = "", more: str = "") -> Config:
    """A run that begins from a folder: loaded from a file, as a user's is. `extra` are more keys of `model`."""
    data_format = {"language_modeling": "text", "masked_language_modeling": "text"}.get(task, "jsonl")
    path = directory / "config.yaml"
    model = f"model: {{initialize_from: {folder}{extra}}}"
    text = CONFIG.replace("DIRECTORY", str(directory)).replace("TASK", task).replace("FORMAT", data_format)
    path.write_text(text.replace("MODEL", model) + more)
    return load_config(path)


def some_tokens(seed: int = 0, length: int = LENGTH) -> np.ndarray:
    """Three rows of tokens; which of them are padding is said by `some_lengths`."""
    return np.random.default_rng(seed).integers(2, VOCABULARY_SIZE, (3, length)).astype(np.int32)


def some_lengths(length: int = LENGTH) -> np.ndarray:
    return np.array([length, length - 3, 2])


def their_logits(model: Any, tokens: np.ndarray, lengths: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
    """What `transformers` computes of rows padded behind; of padding itself the numbers mean nothing."""
    mask = torch.tensor(np.arange(tokens.shape[1])[None] < lengths[:, None]).long()
    given: dict[str, Any] = {"input_ids": torch.tensor(tokens).long(), "attention_mask": mask}
    if targets is not None:
        given["decoder_input_ids"] = torch.tensor(targets).long()
    with torch.no_grad():
        return model(**given).logits.float().numpy()


def our_logits(
    tensorflow: Any, config: Config, weights: Mapping[str, Any], tokens: np.ndarray, lengths: np.ndarray, targets: Any = None
) -> np.ndarray:
    from trainer.models import bert, encoder_decoder, gpt

    model, weights = config.model, {name: tensorflow.convert_to_tensor(weight) for name, weight in weights.items()}
    segments = tensorflow.constant((np.arange(tokens.shape[1])[None] < lengths[:, None]).astype(np.int32))
    tokens = tensorflow.constant(tokens)
    match model.family:
        case "gpt":
            return gpt.logits(model, weights, tokens, None, segments).numpy()
        case "bert":
            return bert.token_logits(model, weights, bert.hidden_states(model, weights, tokens, segments)).numpy()
        case _:
            encoded = encoder_decoder.encode(model, weights, tokens, segments)
            all_real = tensorflow.ones(targets.shape, tensorflow.int32)
            inputs = tensorflow.constant(targets)
            return encoder_decoder.logits(model, weights, inputs, all_real, encoded, segments).numpy()


def largest_difference(ours: np.ndarray, theirs: np.ndarray, lengths: np.ndarray | None) -> float:
    """Over what is not padding."""
    real = np.ones(ours.shape[:2], bool) if lengths is None else np.arange(ours.shape[1])[None] < lengths[:, None]
    return float(np.abs(ours - theirs)[real].max())


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
