"""Models of `transformers` that are given our weights, for tests; names are matched here by hand, apart from the product's own.

Nothing is shared with `trainer.pretrained` on purpose: a mistake there must not be made here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from trainer.config import ModelConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY_SIZE, LENGTH = 29, 24
Arrays = Mapping[str, np.ndarray]


def give(theirs: Any, values: Mapping[str, np.ndarray]) -> Any:
    """Sets all parameters of a model of theirs; each must be named once."""
    own = dict(theirs.named_parameters())
    assert set(own) == set(values), set(own) ^ set(values)
    with torch.no_grad():
        for name, parameter in own.items():
            assert tuple(parameter.shape) == values[name].shape, name
            parameter.copy_(torch.from_numpy(values[name].copy()))
    return theirs.eval()


def parts(model: ModelConfig, weights: Arrays, name: str, leaf: str = "kernel") -> list[np.ndarray]:
    """Queries, keys and values of a joint matrix, turned as theirs are."""
    heads, pairs = model.num_heads * model.head_width, model.key_value_heads * model.head_width
    return [part.T for part in np.split(weights[f"{name}.{leaf}"], (heads, heads + pairs), -1)]


def their_gpt2(model: ModelConfig, weights: Arrays) -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY_SIZE,
        n_positions=LENGTH,
        n_embd=model.width,
        n_layer=model.num_layers,
        n_head=model.num_heads,
    )
    values = {"transformer.wte.weight": weights["token_embedding"], "transformer.wpe.weight": weights["position_embedding"]}
    names = {
        "attention_norm": "ln_1",
        "attention.query_key_value": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    for layer in range(model.num_layers):
        for ours, theirs in names.items():
            for leaf, their_leaf in leaves(ours):
                values[f"transformer.h.{layer}.{theirs}.{their_leaf}"] = weights[f"blocks.{layer}.{ours}.{leaf}"]
    values |= {f"transformer.ln_f.{theirs}": weights[f"final_norm.{ours}"] for ours, theirs in leaves("norm")}
    return give(transformers.GPT2LMHeadModel(config), values)


def leaves(name: str) -> tuple[tuple[str, str], ...]:
    return ("gain" if name.endswith("norm") else "kernel", "weight"), ("bias", "bias")


def their_llama(model: ModelConfig, weights: Arrays) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=model.width,
        intermediate_size=model.hidden_width,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.key_value_heads,
        head_dim=model.head_width,
        rms_norm_eps=model.normalization_epsilon,
        rope_theta=model.rotary_base,
    )
    values = {"model.embed_tokens.weight": weights["token_embedding"], "lm_head.weight": weights["output"]}
    values["model.norm.weight"] = weights["final_norm.gain"]
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        query, key, value = parts(model, weights, f"{ours}.attention.query_key_value")
        gate, up = np.split(weights[f"{ours}.feed_forward.up.kernel"], 2, 1)
        values |= {
            f"{theirs}.input_layernorm.weight": weights[f"{ours}.attention_norm.gain"],
            f"{theirs}.self_attn.q_proj.weight": query,
            f"{theirs}.self_attn.k_proj.weight": key,
            f"{theirs}.self_attn.v_proj.weight": value,
            f"{theirs}.self_attn.o_proj.weight": weights[f"{ours}.attention.output.kernel"].T,
            f"{theirs}.post_attention_layernorm.weight": weights[f"{ours}.feed_forward_norm.gain"],
            f"{theirs}.mlp.gate_proj.weight": gate.T,
            f"{theirs}.mlp.up_proj.weight": up.T,
            f"{theirs}.mlp.down_proj.weight": weights[f"{ours}.feed_forward.down.kernel"].T,
        }
    return give(transformers.LlamaForCausalLM(config), values)


def their_bert(model: ModelConfig, weights: Arrays) -> Any:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=model.width,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.hidden_width,
        max_position_embeddings=LENGTH,
    )
    names = {
        "embedding_norm": "bert.embeddings.LayerNorm",
        "pooler": "bert.pooler.dense",
        "masked.transform": "cls.predictions.transform.dense",
        "masked.norm": "cls.predictions.transform.LayerNorm",
    }
    values = {
        "bert.embeddings.word_embeddings.weight": weights["token_embedding"],
        "bert.embeddings.position_embeddings.weight": weights["position_embedding"],
        "bert.embeddings.token_type_embeddings.weight": weights["type_embedding"],
        "cls.predictions.bias": weights["masked.bias"],
        "cls.seq_relationship.weight": np.zeros((2, model.width), np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
    }
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}", f"bert.encoder.layer.{layer}"
        for leaf, their_leaf in leaves("attention"):
            joint = parts(model, weights, f"{ours}.attention.query_key_value", leaf)
            for name, part in zip(("query", "key", "value"), joint, strict=True):
                values[f"{theirs}.attention.self.{name}.{their_leaf}"] = part
        names |= {
            f"{ours}.attention.output": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.feed_forward.up": f"{theirs}.intermediate.dense",
            f"{ours}.feed_forward.down": f"{theirs}.output.dense",
            f"{ours}.feed_forward_norm": f"{theirs}.output.LayerNorm",
        }
    for our_name, their_name in names.items():
        for leaf, their_leaf in leaves(our_name):
            values[f"{their_name}.{their_leaf}"] = weights[f"{our_name}.{leaf}"].T
    return give(transformers.BertForPreTraining(config), values)


def their_t5(model: ModelConfig, weights: Arrays) -> Any:
    config = transformers.T5Config(
        vocab_size=VOCABULARY_SIZE,
        d_model=model.width,
        d_kv=model.head_width,
        d_ff=model.hidden_width,
        num_layers=model.num_layers,
        num_decoder_layers=model.decoder_layers,
        num_heads=model.num_heads,
        relative_attention_num_buckets=model.relative_buckets,
        relative_attention_max_distance=model.relative_distance,
        feed_forward_proj="gated-gelu" if model.is_gated else "relu",
        tie_word_embeddings=model.tied_output,
    )
    theirs = transformers.T5ForConditionalGeneration(config)
    values = {"shared.weight": weights["token_embedding"]}
    if not model.tied_output:
        # Theirs ties them whatever is asked for, until weights are loaded that differ.
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().clone())
        values["lm_head.weight"] = weights["output"]
    for side, num_layers in (("encoder", model.num_layers), ("decoder", model.decoder_layers)):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        values[bias] = weights[f"{side}.relative_positions"]
        values[f"{side}.final_layer_norm.weight"] = weights[f"{side}.final_norm.gain"]
        for layer in range(num_layers):
            values |= t5_layer(model, weights, f"{side}.blocks.{layer}", f"{side}.block.{layer}.layer")
    return give(theirs, values)


def t5_layer(model: ModelConfig, weights: Arrays, ours: str, theirs: str) -> dict[str, np.ndarray]:
    values, feed_forward = {}, 1
    joint = parts(model, weights, f"{ours}.attention.query_key_value")
    attentions = [("SelfAttention", "attention", joint)]
    if ours.startswith("decoder"):
        feed_forward = 2
        keys_values = np.split(weights[f"{ours}.cross_attention.key_value.kernel"].T, 2)
        joint = [weights[f"{ours}.cross_attention.query.kernel"].T, *keys_values]
        attentions.append(("EncDecAttention", "cross_attention", joint))
    for place, (their_name, our_name, joint) in enumerate(attentions):
        values |= {f"{theirs}.{place}.{their_name}.{part}.weight": each for part, each in zip("qkv", joint, strict=True)}
        values[f"{theirs}.{place}.{their_name}.o.weight"] = weights[f"{ours}.{our_name}.output.kernel"].T
        values[f"{theirs}.{place}.layer_norm.weight"] = weights[f"{ours}.{our_name}_norm.gain"]
    up, dense = weights[f"{ours}.feed_forward.up.kernel"].T, f"{theirs}.{feed_forward}.DenseReluDense"
    if model.is_gated:
        values[f"{dense}.wi_0.weight"], values[f"{dense}.wi_1.weight"] = np.split(up, 2)
    else:
        values[f"{dense}.wi.weight"] = up
    values[f"{dense}.wo.weight"] = weights[f"{ours}.feed_forward.down.kernel"].T
    values[f"{theirs}.{feed_forward}.layer_norm.weight"] = weights[f"{ours}.feed_forward_norm.gain"]
    return values
