"""Which tensors of Hugging Face's files each of our weights is, and how it is laid out in them. No TensorFlow.

A matrix of ours is [inputs, outputs]; a Linear of PyTorch's keeps it as [outputs, inputs]. Where several matrices of theirs
read the same (query, key and value; gate and up), ours has them side by side. Their names are those within the model that a
head is put on (GPT2Model, LlamaModel, BertModel); those of heads stand beside it, and with a head the others have a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainer.config import ModelConfig
from trainer.pretrained.settings import Format

PREFIXES: dict[Format, str] = {"gpt2": "transformer.", "llama": "model.", "bert": "bert.", "t5": ""}


@dataclass(frozen=True)
class Origin:
    """The tensors that make up one of our weights: side by side, with so many columns each (0: all there are)."""

    names: tuple[str, ...]
    widths: tuple[int, ...] = (0,)
    is_transposed: bool = False
    is_of_head: bool = False  # not of the model that heads are put on: its name never has the prefix

    def join(self, tensors: list[np.ndarray]) -> np.ndarray:
        """Our weight, of their tensors in order; a view where there is one alone."""
        turned = [tensor.T if self.is_transposed else tensor for tensor in tensors]
        return turned[0] if len(turned) == 1 else np.concatenate(turned, axis=-1)

    def shape_of_join(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
        """The shape of what `join` would make; None where the tensors cannot stand side by side."""
        turned = [shape[::-1] if self.is_transposed else shape for shape in shapes]
        if any(not shape or shape[:-1] != turned[0][:-1] for shape in turned):
            return None
        if len(turned) > 1 and any(shape[-1] != width for shape, width in zip(turned, self.widths, strict=True)):
            return None
        return (*turned[0][:-1], sum(shape[-1] for shape in turned))

    def split(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Their tensors by name: the opposite of `join`."""
        ends = np.cumsum(self.widths[:-1])
        parts = [weight] if len(self.names) == 1 else np.split(weight, ends, axis=-1)
        return {name: part.T if self.is_transposed else part for name, part in zip(self.names, parts, strict=True)}


def origins(known: Format, model: ModelConfig, weights: Iterable[str]) -> dict[str, Origin]:
    """By our names of `weights` (`tasks.parameters`), where each comes from; those without a counterpart are left out."""
    found = {}
    for name in weights:
        origin = _origin(known, model, name)
        if origin is not None:
            found[name] = origin
    return found


def full_name(origin: Origin, name: str, prefix: str) -> str:
    """A tensor's name in a file whose model has this prefix."""
    return name if origin.is_of_head else f"{prefix}{name}"


def is_head(name: str) -> bool:
    """Whether one of our weights is what a task puts on the model, which a folder need not have."""
    return name.startswith(("pooler.", "classifier.", "span.", "masked."))


# What files hold beside weights, or a second time, or as the head of another task.
_LEFT_OUT: dict[Format, re.Pattern[str]] = {
    # Masks of attention; the output, where it is the embeddings; the head of a classifier.
    "gpt2": re.compile(r"^(h\.\d+\.attn\.(masked_)?bias|lm_head\.weight|score\.weight|multiple_choice_head\..*)$"),
    "llama": re.compile(r"^((layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq|lm_head\.weight|score\.weight|qa_outputs\..*)$"),
    "bert": re.compile(r"^(embeddings\.position_ids|pooler\..*|cls\..*|classifier\..*|qa_outputs\..*)$"),
    # The embeddings of both sides are those of `shared`. The last is of T5's first files, and was never used.
    "t5": re.compile(
        r"^((encoder|decoder)\.embed_tokens\.weight|lm_head\.weight|classification_head\..*|qa_outputs\..*"
        r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight)$"
    ),
}

# Copies of the embeddings, by which scores over the vocabulary are computed where the output is tied.
TIED_OUTPUTS: dict[Format, str] = {
    "gpt2": "lm_head.weight",
    "llama": "lm_head.weight",
    "bert": "cls.predictions.decoder.weight",
    "t5": "lm_head.weight",
}


def is_left_out(known: Format, name: str) -> bool:
    """Whether a tensor (its prefix taken off) may be in a file although no weight of the run comes from it."""
    return bool(_LEFT_OUT[known].match(name))


def other_names(name: str) -> list[str]:
    """What a tensor is called in older files: TensorFlow's names of a normalization's parts, which BERT's files have kept."""
    if "LayerNorm" not in name:
        return []
    return [name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")]


_OURS = re.compile(r"^(?:(?P<side>encoder|decoder)\.)?(?:blocks\.(?P<layer>\d+)\.)?(?P<rest>.+)$")


def _origin(known: Format, model: ModelConfig, name: str) -> Origin | None:
    match known:
        case "gpt2":
            return _gpt2(name)
        case "llama":
            return _llama(model, name)
        case "bert":
            return _bert(model, name)
        case "t5":
            return _t5(model, name)


def _parts(name: str) -> tuple[str | None, str | None, str, str]:
    """Side, number of the layer, what is within it, and its last part: `kernel`, `bias`, `gain`."""
    match = _OURS.match(name)
    assert match is not None
    stem, _, kind = match["rest"].rpartition(".")
    return match["side"], match["layer"], stem, kind


def _attention_widths(model: ModelConfig) -> tuple[int, int, int]:
    pairs = model.key_value_heads * model.head_width
    return model.attention_width, pairs, pairs


_GPT2_TABLES = {"token_embedding": "wte.weight", "position_embedding": "wpe.weight"}
_GPT2_STEMS = {
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


def _gpt2(name: str) -> Origin | None:
    """Its matrices are laid out as ours (transformers' Conv1D), query, key and value side by side too."""
    if name in _GPT2_TABLES:
        return Origin((_GPT2_TABLES[name],))
    if name == "output":
        return Origin(("lm_head.weight",), is_of_head=True)
    _, layer, stem, kind = _parts(name)
    theirs = "bias" if kind == "bias" else "weight"
    if stem == "final_norm":
        return Origin((f"ln_f.{theirs}",))
    if layer is None or stem not in _GPT2_STEMS or kind.startswith("lora"):
        return None
    return Origin((f"h.{layer}.{_GPT2_STEMS[stem]}.{theirs}",))


_LLAMA_STEMS = {
    "attention_norm": ("input_layernorm",),
    "attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.output": ("self_attn.o_proj",),
    "feed_forward_norm": ("post_attention_layernorm",),
    "feed_forward.up": ("mlp.gate_proj", "mlp.up_proj"),
    "feed_forward.down": ("mlp.down_proj",),
}


def _llama(model: ModelConfig, name: str) -> Origin | None:
    if name == "token_embedding":
        return Origin(("embed_tokens.weight",))
    if name == "output":
        return Origin(("lm_head.weight",), is_of_head=True)
    if name == "final_norm.gain":
        return Origin(("norm.weight",))
    _, layer, stem, kind = _parts(name)
    if layer is None or stem not in _LLAMA_STEMS:
        return None
    return _linears(model, f"layers.{layer}", _LLAMA_STEMS[stem], kind)


_BERT_TABLES = {
    "token_embedding": "embeddings.word_embeddings.weight",
    "position_embedding": "embeddings.position_embeddings.weight",
    "type_embedding": "embeddings.token_type_embeddings.weight",
}
_BERT_STEMS = {
    "attention.query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.up": ("intermediate.dense",),
    "feed_forward.down": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}
_BERT_HEADS = {
    "masked.transform": "cls.predictions.transform.dense",
    "masked.norm": "cls.predictions.transform.LayerNorm",
    "classifier": "classifier",
    "span": "qa_outputs",
}


def _bert(model: ModelConfig, name: str) -> Origin | None:
    if name in _BERT_TABLES:
        return Origin((_BERT_TABLES[name],))
    if name == "masked.bias":
        return Origin(("cls.predictions.bias",), is_of_head=True)
    _, layer, stem, kind = _parts(name)
    if kind.startswith("lora"):
        return None
    theirs = "bias" if kind == "bias" else "weight"
    if stem == "embedding_norm":
        return Origin((f"embeddings.LayerNorm.{theirs}",))
    if stem == "pooler":
        return Origin((f"pooler.dense.{theirs}",), is_transposed=kind == "kernel")
    if stem in _BERT_HEADS:
        return Origin((f"{_BERT_HEADS[stem]}.{theirs}",), is_transposed=kind == "kernel", is_of_head=True)
    if layer is None or stem not in _BERT_STEMS:
        return None
    return _linears(model, f"encoder.layer.{layer}", _BERT_STEMS[stem], kind)


# A layer of T5's encoder has two parts, of its decoder three: the feed-forward part is the last.
_T5_ATTENTIONS = {"attention": "layer.0.SelfAttention", "cross_attention": "layer.1.EncDecAttention"}
_T5_MATRICES = {"query_key_value": ("q", "k", "v"), "query": ("q",), "key_value": ("k", "v"), "output": ("o",)}


def _t5(model: ModelConfig, name: str) -> Origin | None:
    if name == "token_embedding":
        return Origin(("shared.weight",))
    if name == "output":
        return Origin(("lm_head.weight",))
    side, layer, stem, kind = _parts(name)
    if side is None:
        return None
    if layer is None:
        if kind == "relative_positions":
            return Origin((f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",))
        return Origin((f"{side}.final_layer_norm.weight",)) if (stem, kind) == ("final_norm", "gain") else None
    last = 1 if side == "encoder" else 2
    norms = {"attention_norm": 0, "cross_attention_norm": 1, "feed_forward_norm": last}
    if stem in norms:
        return Origin((f"{side}.block.{layer}.layer.{norms[stem]}.layer_norm.weight",))
    block, matrix = stem.rsplit(".", 1)
    if block == "feed_forward":
        up = ("wi_0", "wi_1") if model.is_gated else ("wi",)
        parts = tuple(f"layer.{last}.DenseReluDense.{part}" for part in (up if matrix == "up" else ("wo",)))
    else:
        parts = tuple(f"{_T5_ATTENTIONS[block]}.{part}" for part in _T5_MATRICES[matrix])
    return _linears(model, f"{side}.block.{layer}", parts, kind)


def _linears(model: ModelConfig, block: str, parts: tuple[str, ...], kind: str) -> Origin | None:
    """Matrices of PyTorch's Linear side by side, or their biases; or the gain of a normalization."""
    if kind not in ("kernel", "bias", "gain"):
        return None  # a low-rank pair
    widths: tuple[int, ...] = (0,)
    if len(parts) > 1 and parts[0].endswith(("gate_proj", "wi_0")):
        widths = (model.hidden_width, model.hidden_width)
    elif len(parts) > 1:
        widths = _attention_widths(model)[-len(parts) :]
    theirs = "bias" if kind == "bias" else "weight"
    return Origin(tuple(f"{block}.{part}.{theirs}" for part in parts), widths, is_transposed=kind == "kernel")
