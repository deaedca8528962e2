"""From our section `model` to what a config.json in Hugging Face's format says, where that format has it. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config import Config, ModelConfig
from trainer.pretrained.settings import ACTIVATIONS, GATED_ACTIVATIONS, T5_ACTIVATIONS, Format


def format_of(model: ModelConfig) -> tuple[Format | None, list[str]]:
    """Which of their formats has a model such as ours; or None, and the settings that none of them has."""
    known: Format
    match model.family:
        case "gpt":
            known = "llama" if model.positions == "rotary" else "gpt2"
        case "bert" | "t5":
            known = model.family
        case "encoder_decoder" | "bag_of_embeddings":
            return None, ["family"]
    misfits = [key for key, is_one in _misfits(known, model).items() if is_one]
    return (None if misfits else known), misfits


def _misfits(known: Format, model: ModelConfig) -> dict[str, bool]:
    """Of settings whether theirs have them only otherwise."""
    attends_otherwise = {
        "num_key_value_heads": model.key_value_heads != model.num_heads,
        "width_per_head": model.attention_width != model.width,
    }
    match known:
        case "gpt2":
            otherwise = {"normalization": model.normalization != "layer_norm", "biases": not model.biases}
            return {**otherwise, "activation": model.is_gated, **attends_otherwise}
        case "llama":
            # transformers checks the last, although with `head_dim` it need not.
            return {
                "normalization": model.normalization != "rms_norm",
                "activation": not model.is_gated,
                "num_heads": model.width % model.num_heads != 0,
            }
        case "bert":
            return {"token_types": model.token_types == 0, **attends_otherwise}
        case "t5":
            return {
                "normalization": model.normalization != "rms_norm",
                "activation": model.activation == "gelu",
                "biases": model.biases,
                "num_key_value_heads": model.key_value_heads != model.num_heads,
            }


def theirs_of(config: Config, vocabulary_size: int) -> dict[str, Any]:
    """What a config.json says of the model alone: the opposite of `settings.model_settings`. The model must have a format."""
    model = config.model
    known, wanted = format_of(model)
    assert known is not None, wanted
    rows = {"tokens": vocabulary_size, "positions": model.max_positions or config.data.sequence_length}
    match known:
        case "gpt2":
            return _gpt2(model, rows)
        case "llama":
            return _llama(model, rows)
        case "bert":
            return _bert(model, rows)
        case "t5":
            return _t5(model, rows)


def _gpt2(model: ModelConfig, rows: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": rows["tokens"],
        "n_positions": rows["positions"],
        "n_embd": model.width,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.hidden_width,
        "activation_function": _inverse(ACTIVATIONS, model.activation),
        "layer_norm_epsilon": model.normalization_epsilon,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "tie_word_embeddings": model.tied_output,
    }


def _llama(model: ModelConfig, rows: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": rows["tokens"],
        "max_position_embeddings": rows["positions"],
        **_sizes(model),
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_width,
        "hidden_act": _inverse(GATED_ACTIVATIONS, model.activation),
        "rms_norm_eps": model.normalization_epsilon,
        # The first for versions before 5, the second from then on.
        "rope_theta": model.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rotary_base},
        "attention_bias": model.biases,
        "mlp_bias": model.biases,
        "attention_dropout": model.dropout,
        "tie_word_embeddings": model.tied_output,
    }


def _bert(model: ModelConfig, rows: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": rows["tokens"],
        "max_position_embeddings": rows["positions"],
        "type_vocab_size": model.token_types,
        **_sizes(model),
        "hidden_act": _inverse(ACTIVATIONS, model.activation),
        "layer_norm_eps": model.normalization_epsilon,
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.dropout,
    }


def _sizes(model: ModelConfig) -> dict[str, Any]:
    """Under the names that Llama has from BERT."""
    return {
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
    }


def _t5(model: ModelConfig, rows: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "vocab_size": rows["tokens"],
        "d_model": model.width,
        "d_kv": model.head_width,
        "d_ff": model.hidden_width,
        "num_layers": model.num_layers,
        "num_decoder_layers": model.decoder_layers,
        "num_heads": model.num_heads,
        "relative_attention_num_buckets": model.relative_buckets,
        "relative_attention_max_distance": model.relative_distance,
        "feed_forward_proj": _inverse(T5_ACTIVATIONS, model.activation),
        "layer_norm_epsilon": model.normalization_epsilon,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": model.tied_output,
    }


def _inverse(ours: Mapping[str, str], wanted: str) -> str:
    """The first of their names for one of our activations."""
    return next(name for name, value in ours.items() if value == wanted)
