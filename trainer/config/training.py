"""The sections `optimizer` and `train`: updates and batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.config.section import Count, Section, complaint, with_defaults_of

OptimizerKind = Literal["adamw", "adam", "lamb", "adafactor", "lion", "muon"]
Schedule = Literal["constant", "linear", "cosine", "inverse_square_root", "warmup_stable_decay", "exponential_rise"]

# What the optimizers' papers chose, where that is not the default.
_KIND_DEFAULTS: dict[OptimizerKind, dict[str, Any]] = {
    "adamw": {},
    "adam": {},
    # You et al. 2020 (arXiv:1904.00962).
    "lamb": {"beta2": 0.999, "epsilon": 1.0e-6, "weight_decay": 0.01},
    # Shazeer and Stern 2018 (arXiv:1804.04235): there the epsilon is that of squares.
    "adafactor": {"epsilon": 1.0e-30, "weight_decay": 0.0},
    # Chen et al. 2023 (arXiv:2302.06675).
    "lion": {"beta2": 0.99},
    # Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon).
    "muon": {"momentum": 0.95},
}

# Keys that a kind does not obey.
_FOREIGN_KEYS: dict[OptimizerKind, tuple[str, ...]] = {
    "adamw": ("momentum",),
    "adam": ("momentum", "weight_decay"),
    "lamb": ("momentum",),
    "adafactor": ("momentum", "beta1", "beta2"),
    "lion": ("momentum", "epsilon"),
    "muon": (),
}


class OptimizerConfig(Section):
    """How gradients become updates; decay touches matrices only, never biases, norms or gains.

    `adamw` (Loshchilov and Hutter 2019, arXiv:1711.05101); `adam` is the same without decay; `lamb`, `adafactor` and `lion` are
    what `trainer/optimizers/` says of them. `muon` is for the matrices of the layers; all other weights are then AdamW's, with
    `beta1`, `beta2` and `epsilon`.

    `decay_steps` belongs to `warmup_stable_decay`: the learning rate falls over the last so many steps. `exponential_rise` goes
    the other way, from `minimum_learning_rate` to `learning_rate`, to find out which rate is good. `freeze` names
    weights that stay as they are, by patterns such as `token_embedding` or `blocks.0.*`. With a `layer_decay` below 1 each
    layer learns so much more slowly than the one above it (Howard and Ruder 2018, arXiv:1801.06146), the embeddings slowest.
    """

    kind: OptimizerKind = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)]
    schedule: Schedule = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_steps: Count | None = None
    minimum_learning_rate: Annotated[float, Field(ge=0.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    epsilon: Annotated[float, Field(gt=0.0)] = 1.0e-8
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = ()
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @property
    def decay(self) -> float:
        """The weight decay that is applied."""
        return 0.0 if self.kind == "adam" else self.weight_decay

    @model_validator(mode="before")
    @classmethod
    def _kind_chooses_first(cls, given: Any) -> Any:
        return with_defaults_of("kind", "adamw", _KIND_DEFAULTS, given)

    @model_validator(mode="after")
    def _options_belong_to_the_kind(self) -> OptimizerConfig:
        """Refuses what the kind would not obey."""
        for key in _FOREIGN_KEYS[self.kind]:
            # The default may be there: a resolved configuration names all that there is. No decay is what `adam` has.
            obeyed = [type(self).model_fields[key].default, *([0.0] if key == "weight_decay" else [])]
            if getattr(self, key) not in obeyed:
                raise complaint(key, f"{getattr(self, key)}", f"nothing: {self.kind} does not have it")
        if self.kind == "muon" and self.momentum is None:
            raise complaint("momentum", "null", "a number below 1: muon needs it")
        return self

    @model_validator(mode="after")
    def _schedule_has_what_it_needs(self) -> OptimizerConfig:
        if self.minimum_learning_rate > self.learning_rate:
            raise complaint(
                "minimum_learning_rate",
                f"{self.minimum_learning_rate}",
                f"at most `learning_rate`, which is {self.learning_rate}",
            )
        if self.schedule == "exponential_rise" and not self.minimum_learning_rate:
            raise complaint("minimum_learning_rate", "0", "more, from where the rate rises with schedule exponential_rise")
        if self.schedule == "exponential_rise" and self.warmup_steps:
            raise complaint("warmup_steps", f"{self.warmup_steps}", "0 with schedule exponential_rise, which rises by itself")
        if (self.decay_steps is not None) != (self.schedule == "warmup_stable_decay"):
            expected = (
                "the number of steps of the final fall"
                if self.decay_steps is None
                else "it only with schedule warmup_stable_decay"
            )
            raise complaint("decay_steps", "nothing" if self.decay_steps is None else f"{self.decay_steps}", expected)
        return self


class TrainConfig(Section):
    """Updates and batches. Batch sizes are global and count sequences: what a replica gets follows from how many there are.

    `micro_batch_size` sequences, over all replicas, are computed at once; their gradients are added up until
    `global_batch_size` is reached, and reduced once. `compile`: XLA compiles the whole forward and backward pass, each chain of
    elementwise operations by itself (`elementwise`), or nothing (`graph`); `auto` picks by device.
    The loss scale is float16's alone: halved at an overflow, doubled after `loss_scale_growth_steps` steps without one.

    `steps_per_loop` updates are made in one call of TensorFlow, or as many as fit into `loop_seconds`: between calls a stop
    is heard. `deterministic` makes two runs on the same devices equal to the last bit. `label_smoothing` gives so much of
    each target's weight to all classes alike (Szegedy et al. 2016, arXiv:1512.00567), in training alone.

    With an `average_decay` d the run also keeps, of each trained weight, a moving average: d times what it was, and 1 - d
    times the weight after the update. It is what is evaluated, predicted with and exported; training goes on with its own.

    `loss_chunk_tokens` is for how many positions the scores over the vocabulary are there at once, at most; null: for all of
    a micro-batch. `auto` is all of them while the scores take at most 1 GiB, and what takes 128 MiB beyond; with
    `model.recompute: blocks`, which is for want of memory, 64 MiB and 32. It is never fewer than 768 positions: with each
    chunk the gradient of the whole table is read and written once more.

    With `shard_optimizer` each of N Horovod ranks keeps 1/N of the optimizer's state (ZeRO stage 1; Rajbhandari et al. 2020,
    arXiv:1910.02054). It is for optimizers that treat each number alone. Checkpoints do not depend on it.
    """

    steps: Count
    global_batch_size: Count
    micro_batch_size: Count | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    steps_per_loop: Count = 10
    loop_seconds: Annotated[float, Field(gt=0.0)] = 10.0
    deterministic: bool = False
    compile: Literal["auto", "xla", "elementwise", "graph"] = "auto"
    initial_loss_scale: Annotated[float, Field(ge=1.0)] = 32_768.0
    loss_scale_growth_steps: Count = 2_000
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    average_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    loss_chunk_tokens: Count | Literal["auto"] | None = "auto"
    shard_optimizer: bool = False

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise complaint(
                "micro_batch_size",
                f"{self.micro_batch_size}",
                f"a divisor of `global_batch_size`, which is {self.global_batch_size}",
            )
        return self
