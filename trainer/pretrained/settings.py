"""From the config.json of a folder in Hugging Face's format to our section `model`. No TensorFlow.

What stands in a config.json is told by transformers' configuration classes (https://huggingface.co/docs/transformers, 5.x);
where a key is missing, it has the default that it has there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.config import ModelConfig
from trainer.errors import ConfigError

Format = Literal["gpt2", "llama", "bert", "t5"]

CONFIG_FILE = "config.json"

# Of the section `model`: not a matter of the pretrained weights.
OWN_KEYS = frozenset({"initialize_from", "lora", "pooling", "recompute"})

# What a run may choose for itself, whatever config.json says.
FREE_KEYS = frozenset({"dropout"})

# Which model_type of theirs is which format. Mistral without sliding window is Llama.
_FORMATS: dict[str, Format] = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "bert": "bert", "t5": "t5"}

ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
GATED_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_new": "gated_gelu", "gelu_pytorch_tanh": "gated_gelu"}
T5_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_erf", "gated-gelu": "gated_gelu", "gated-silu": "swiglu"}


def read_settings(folder: Path, given: Collection[str] = ()) -> dict[str, Any]:
    """The keys of our section `model` as the folder's config.json has them; but for those in `OWN_KEYS`, all.

    `given` are keys that the run has values of its own for: what config.json says of one in `FREE_KEYS` is then not asked for.
    Raises ConfigError where there is no such file, or, all at once, for what Drumline cannot do.
    """
    path = folder / CONFIG_FILE
    return model_settings(_read(path), str(path), given)


def model_settings(content: Mapping[str, Any], origin: str, given: Collection[str] = ()) -> dict[str, Any]:
    """As `read_settings`, of what a config.json says; `origin` is the name that complaints begin with."""
    theirs = _Theirs(content)
    model_type = content.get("model_type")
    known = _FORMATS.get(model_type) if isinstance(model_type, str) else None
    if known is None:
        raise ConfigError(f"{origin}: model_type: got {_show(model_type)}, expected one of {', '.join(_FORMATS)}")
    if "quantization_config" in content:
        theirs.refuse("quantization_config", "none: weights that were packed into fewer bits are not read")
    match known:
        case "gpt2":
            settings = _of_gpt2(theirs)
        case "llama":
            settings = _of_llama(theirs, is_mistral=model_type == "mistral")
        case "bert":
            settings = _of_bert(theirs)
        case "t5":
            settings = _of_t5(theirs)
    rates = settings.pop("dropout")
    if len(set(rates.values())) == 1 or "dropout" in given:
        settings["dropout"] = next(iter(rates.values()))
    else:
        said = ", ".join(f"{key} {rate}" for key, rate in rates.items())
        theirs.complaints.append(f"dropout: got {said}, expected one rate; say which as model.dropout")
    if theirs.complaints:
        raise ConfigError([f"{origin}: {complaint}" for complaint in theirs.complaints])
    return settings


class _Theirs:
    """A config.json, and what is wrong with it."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.complaints: list[str] = []

    def refuse(self, key: str, expected: str) -> None:
        self.complaints.append(f"{key}: got {_show(self.content.get(key))}, expected {expected}")

    def count(self, key: str, default: int | None) -> int:
        """A whole number; 1 where there is none, which has then been complained of."""
        value = self.content.get(key)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.refuse(key, "a whole number above 0")
        return 1

    def number(self, key: str, default: float) -> float:
        value = self.content.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        self.refuse(key, "a number")
        return default

    def switch(self, key: str, default: bool) -> bool:
        value = self.content.get(key, default)
        if isinstance(value, bool):
            return value
        self.refuse(key, "true or false")
        return default

    def must_be(self, key: str, default: Any, reason: str) -> None:
        """Refuses what Drumline has only one way of."""
        if self.content.get(key, default) != default:
            self.refuse(key, f"{_show(default)}: {reason}")

    def choice(self, key: str, default: str, ours: Mapping[str, str]) -> str:
        value = self.content.get(key, default)
        if isinstance(value, str) and value in ours:
            return ours[value]
        self.refuse(key, f"one of {', '.join(ours)}")
        return ours[default]


def _of_gpt2(theirs: _Theirs) -> dict[str, Any]:
    theirs.must_be("scale_attn_weights", True, "scores are scaled by the width of a head")
    theirs.must_be("scale_attn_by_inverse_layer_idx", False, "layers are scaled alike")
    theirs.must_be("add_cross_attention", False, "a decoder here has no encoder to look at")
    width = theirs.count("n_embd", 768)
    return _settings(
        family="gpt",
        num_layers=theirs.count("n_layer", 12),
        num_heads=theirs.count("n_head", 12),
        width=width,
        feed_forward_width=theirs.count("n_inner", 4 * width),
        vocabulary_size=theirs.count("vocab_size", 50_257),
        max_positions=theirs.count("n_positions", 1024),
        activation=theirs.choice("activation_function", "gelu_new", ACTIVATIONS),
        normalization_epsilon=theirs.number("layer_norm_epsilon", 1e-5),
        tied_output=theirs.switch("tie_word_embeddings", True),
        dropout={key: theirs.number(key, 0.1) for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")},
    )


def _of_llama(theirs: _Theirs, *, is_mistral: bool) -> dict[str, Any]:
    width, heads = theirs.count("hidden_size", 4096), theirs.count("num_attention_heads", 32)
    max_positions = theirs.count("max_position_embeddings", 4096 * 32 if is_mistral else 2048)
    biases = theirs.switch("attention_bias", False)
    if biases != theirs.switch("mlp_bias", False):
        theirs.refuse("attention_bias", f"{_show(not biases)}, as mlp_bias is: all matrices have biases, or none")
    if is_mistral and theirs.content.get("sliding_window", 4096) is not None:
        window = theirs.count("sliding_window", 4096)
        if window < max_positions:
            expected = f"null, or at least max_position_embeddings ({max_positions}): a token sees all that come before it"
            theirs.complaints.append(f"sliding_window: got {window}, expected {expected}")
    theirs.must_be("rope_interleaved", False, "rotary positions pair the halves of a head")
    return _settings(
        family="gpt",
        num_layers=theirs.count("num_hidden_layers", 32),
        num_heads=heads,
        num_key_value_heads=theirs.count("num_key_value_heads", 8 if is_mistral else heads),
        width=width,
        width_per_head=theirs.count("head_dim", max(width // heads, 1)),
        feed_forward_width=theirs.count("intermediate_size", 14_336 if is_mistral else 11_008),
        vocabulary_size=theirs.count("vocab_size", 32_000),
        max_positions=max_positions,
        positions="rotary",
        rotary_base=_rotary_base(theirs),
        normalization="rms_norm",
        normalization_epsilon=theirs.number("rms_norm_eps", 1e-6),
        activation=theirs.choice("hidden_act", "silu", GATED_ACTIVATIONS),
        biases=biases,
        tied_output=theirs.switch("tie_word_embeddings", False),
        dropout={"attention_dropout": theirs.number("attention_dropout", 0.0)},
    )


def _of_bert(theirs: _Theirs) -> dict[str, Any]:
    theirs.must_be("position_embedding_type", "absolute", "positions are rows of a table")
    theirs.must_be("is_decoder", False, "an encoder sees what comes before and after a token")
    theirs.must_be("add_cross_attention", False, "an encoder looks at nothing else")
    theirs.must_be("tie_word_embeddings", True, "scores over the vocabulary are computed with the embeddings")
    return _settings(
        family="bert",
        num_layers=theirs.count("num_hidden_layers", 12),
        num_heads=theirs.count("num_attention_heads", 12),
        width=theirs.count("hidden_size", 768),
        feed_forward_width=theirs.count("intermediate_size", 3072),
        vocabulary_size=theirs.count("vocab_size", 30_522),
        max_positions=theirs.count("max_position_embeddings", 512),
        token_types=theirs.count("type_vocab_size", 2),
        activation=theirs.choice("hidden_act", "gelu", ACTIVATIONS),
        normalization_epsilon=theirs.number("layer_norm_eps", 1e-12),
        dropout={key: theirs.number(key, 0.1) for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")},
    )


def _of_t5(theirs: _Theirs) -> dict[str, Any]:
    theirs.must_be("is_encoder_decoder", True, "an encoder or a decoder of T5 alone is not read")
    width, heads = theirs.count("d_model", 512), theirs.count("num_heads", 8)
    layers = theirs.count("num_layers", 6)
    # Version 1.1 does not scale what goes into the scores. Until version 5 transformers told it by `tie_word_embeddings`.
    tied = theirs.switch("tie_word_embeddings", True)
    return _settings(
        family="t5",
        num_layers=layers,
        num_decoder_layers=theirs.count("num_decoder_layers", layers),
        num_heads=heads,
        width=width,
        width_per_head=theirs.count("d_kv", 64),
        feed_forward_width=theirs.count("d_ff", 2048),
        vocabulary_size=theirs.count("vocab_size", 32_128),
        positions="relative",
        relative_buckets=theirs.count("relative_attention_num_buckets", 32),
        relative_distance=theirs.count("relative_attention_max_distance", 128),
        normalization="rms_norm",
        normalization_epsilon=theirs.number("layer_norm_epsilon", 1e-6),
        activation=theirs.choice("feed_forward_proj", "relu", T5_ACTIVATIONS),
        biases=False,
        tied_output=theirs.switch("scale_decoder_outputs", tied),
        dropout={"dropout_rate": theirs.number("dropout_rate", 0.1)},
    )


def _settings(**given: Any) -> dict[str, Any]:
    """All keys of the section, so that what is given and contradicts them is found; in the section's order."""
    defaults = {key: field.default for key, field in ModelConfig.model_fields.items() if key not in OWN_KEYS}
    return defaults | given


def _rotary_base(theirs: _Theirs) -> float:
    """From `rope_theta` and `rope_scaling`, or `rope_parameters`, which has had both since version 5."""
    parameters: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        inner = theirs.content.get(key) or {}
        if not isinstance(inner, dict):
            theirs.refuse(key, "a section")
            continue
        kind = inner.get("rope_type", inner.get("type", "default"))
        if kind != "default":
            theirs.complaints.append(f"{key}: got the type {_show(kind)}, expected default or none: positions are not scaled")
        parameters |= inner
    factor = parameters.get("partial_rotary_factor", theirs.content.get("partial_rotary_factor", 1.0))
    if factor != 1.0:
        theirs.complaints.append(f"partial_rotary_factor: got {_show(factor)}, expected 1.0: whole heads are rotated")
    base = parameters.get("rope_theta", theirs.content.get("rope_theta", 10_000.0))
    if isinstance(base, int | float) and not isinstance(base, bool) and base > 1:
        return float(base)
    theirs.complaints.append(f"rope_theta: got {_show(base)}, expected a number above 1")
    return 10_000.0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; expected a folder in Hugging Face's format") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: got {_show(content)}, expected an object")
    return content


def _show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)
