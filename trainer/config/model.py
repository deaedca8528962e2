"""The section `model`: what the network is made of, and where its weights begin."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.config.section import Count, Section, complaint, with_defaults_of
from trainer.config.tasks import ENCODER_DECODERS, Family

# What the families' papers chose, where that is not the default. T5's choices are all there is of it.
_FAMILY_DEFAULTS: dict[Family, dict[str, Any]] = {
    "gpt": {},
    # Devlin et al. 2019 (arXiv:1810.04805): its GELU is the exact one.
    "bert": {"activation": "gelu_erf", "normalization_epsilon": 1.0e-12, "token_types": 2},
    # Raffel et al. 2020 (arXiv:1910.10683); version 1.1 has `activation: gated_gelu` and `tied_output: false`.
    "t5": {
        "positions": "relative",
        "normalization": "rms_norm",
        "normalization_epsilon": 1.0e-6,
        "activation": "relu",
        "biases": False,
    },
    "encoder_decoder": {},
    "bag_of_embeddings": {},
}

Activation = Literal["gelu", "gelu_erf", "relu", "swiglu", "gated_gelu"]


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2022, arXiv:2106.09685): the model's matrices stay as they are, and to each of those
    in `targets` the product of two of rank `rank` is added, times `alpha / rank`. Nothing else is trained but the task's head.
    """

    rank: Count
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    targets: Annotated[tuple[Literal["attention", "feed_forward"], ...], Field(min_length=1, strict=False)] = (
        "attention",
        "feed_forward",
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class ModelConfig(Section):
    """What the network is made of.

    `gpt` is a decoder. GPT-2 is the default of every choice; Llama is `positions: rotary`, `normalization: rms_norm`,
    `activation: swiglu`, `biases: false`, and, where it applies, `num_key_value_heads` and `tied_output: false`. `bert` is an
    encoder that normalizes after each addition, `t5` an encoder-decoder with relative positions, `encoder_decoder` one that
    normalizes first; `num_layers` counts the layers of each side, unless `num_decoder_layers` says otherwise.
    `bag_of_embeddings` has a `width` alone.

    `pooling` is what a classifier reads of an encoder's vectors: that at [CLS], or the mean over the text's tokens.

    `initialize_from` is a folder in Hugging Face's format: what of this section is not given is read from its config.json,
    and the weights begin as its safetensors files have them. `vocabulary_size` and `max_positions` are the rows of the
    tables, where there are more than the tokenizer and the sequences need.

    With `recompute: blocks` each layer keeps its input alone, and is computed again in the backward pass (Chen et al. 2016,
    arXiv:1604.06174): the same numbers, less memory, more time.
    """

    family: Family = "gpt"
    initialize_from: Annotated[str, Field(min_length=1)] | None = None
    num_layers: Annotated[int, Field(ge=0)] = 0  # a bag of embeddings has none
    num_decoder_layers: Count | None = None
    num_heads: Annotated[int, Field(ge=0)] = 0
    num_key_value_heads: Count | None = None
    width: Count
    width_per_head: Count | None = None
    feed_forward_width: Count | None = None
    vocabulary_size: Count | None = None
    max_positions: Count | None = None
    token_types: Annotated[int, Field(ge=0)] = 0
    positions: Literal["learned", "sinusoidal", "rotary", "relative"] = "learned"
    rotary_base: Annotated[float, Field(gt=1.0)] = 10_000.0
    relative_buckets: Count = 32
    relative_distance: Count = 128
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"
    normalization_epsilon: Annotated[float, Field(gt=0.0)] = 1.0e-5
    activation: Activation = "gelu"
    biases: bool = True
    tied_output: bool = True
    pooling: Literal["first", "mean"] = "first"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    lora: LoraConfig | None = None
    recompute: Literal["none", "blocks"] = "none"

    @property
    def head_width(self) -> int:
        return self.width_per_head or self.width // self.num_heads

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_heads

    @property
    def attention_width(self) -> int:
        """Width of all query heads together, which need not be the model's."""
        return self.num_heads * self.head_width

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def is_gated(self) -> bool:
        return self.activation in ("swiglu", "gated_gelu")

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward layer: four times the model's, or for SwiGLU, which has three matrices instead of
        two, two thirds of that rounded up to a multiple of 64 (Shazeer 2020, arXiv:2002.05202)."""
        if self.feed_forward_width is not None:
            return self.feed_forward_width
        if self.is_gated:
            return -(-8 * self.width // (3 * 64)) * 64
        return 4 * self.width

    @model_validator(mode="before")
    @classmethod
    def _family_chooses_first(cls, given: Any) -> Any:
        return with_defaults_of("family", "gpt", _FAMILY_DEFAULTS, given)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.family == "bag_of_embeddings":
            return self
        for key in ("num_layers", "num_heads"):
            if not getattr(self, key):
                raise complaint(key, "nothing", f"how many the model has, or `initialize_from`: {self.family} needs it")
        if self.width_per_head is None and self.width % self.num_heads:
            raise complaint("width", f"{self.width}", f"a multiple of `num_heads`, which is {self.num_heads}")
        if self.num_heads % self.key_value_heads:
            raise complaint(
                "num_key_value_heads", f"{self.key_value_heads}", f"a divisor of `num_heads`, which is {self.num_heads}"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise complaint(
                "num_heads", f"{self.num_heads}", f"an even width a head for rotary positions; it is {self.head_width}"
            )
        return self

    @model_validator(mode="after")
    def _options_belong_to_the_family(self) -> ModelConfig:
        """Refuses what the family would not obey."""
        given = self.model_fields_set

        def refuse(key: str, expected: str) -> None:
            raise complaint(key, f"{getattr(self, key)}", expected)

        if self.family == "bag_of_embeddings":
            allowed = {"family", "width", "dropout", "vocabulary_size"}
            for key in sorted(given - allowed):
                if getattr(self, key) != type(self).model_fields[key].default:
                    refuse(key, "nothing: a bag of embeddings has a `width` alone")
            return self
        if (self.family == "t5") != (self.positions == "relative"):
            refuse("positions", "relative positions with family t5, and there only")
        if self.family == "bert" and self.positions != "learned":
            refuse("positions", "learned, as BERT has them")
        if self.positions == "sinusoidal" and self.family not in ENCODER_DECODERS:
            refuse("positions", "sinusoidal positions only with family encoder_decoder")
        if self.family == "bert" and (self.normalization != "layer_norm" or not self.biases or self.is_gated):
            refuse("normalization", "layer_norm, `biases`, and an activation without a gate, as BERT has them")
        if self.num_decoder_layers is not None and self.family not in ENCODER_DECODERS:
            refuse("num_decoder_layers", f"nothing: {self.family} is no encoder-decoder")
        if self.pooling != "first" and self.family != "bert":
            refuse("pooling", f"first, the default: {self.family} has no choice of it")
        if self.token_types and self.family != "bert":
            refuse("token_types", f"0: {self.family} has no token types")
        if self.family not in ("gpt", "t5", "encoder_decoder") and not self.tied_output:
            refuse("tied_output", f"true, as {self.family} has it")
        return self
