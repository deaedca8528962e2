"""The sections `optimizer` and `train`: updates and batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Count, Section, complaint


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); decay touches matrices only, never biases, norms or gains.
    `adam` is the same without decay.

    `decay_steps` belongs to `warmup_stable_decay`: the learning rate falls over the last so many steps. `freeze` names
    weights that stay as they are, by patterns such as `token_embedding` or `blocks.0.*`. With a `layer_decay` below 1 each
    layer learns so much more slowly than the one above it (Howard and Ruder 2018, arXiv:1801.06146), the embeddings slowest.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)]
    schedule: Literal["constant", "linear", "cosine", "inverse_square_root", "warmup_stable_decay"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_steps: Count | None = None
    minimum_learning_rate: Annotated[float, Field(ge=0.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    epsilon: Annotated[float, Field(gt=0.0)] = 1.0e-8
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = ()
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @property
    def decay(self) -> float:
        """The weight decay that is applied."""
        return 0.0 if self.kind == "adam" else self.weight_decay

    @model_validator(mode="after")
    def _schedule_has_what_it_needs(self) -> OptimizerConfig:
        if self.minimum_learning_rate > self.learning_rate:
            raise complaint(
                "minimum_learning_rate",
                f"{self.minimum_learning_rate}",
                f"at most `learning_rate`, which is {self.learning_rate}",
            )
        if (self.decay_steps is not None) != (self.schedule == "warmup_stable_decay"):
            expected = (
                "the number of steps of the final fall"
                if self.decay_steps is None
                else "it only with schedule warmup_stable_decay"
            )
            raise complaint("decay_steps", "nothing" if self.decay_steps is None else f"{self.decay_steps}", expected)
        # The default may be there: a resolved configuration names all that there is.
        if self.kind == "adam" and self.weight_decay not in (0.0, type(self).model_fields["weight_decay"].default):
            raise complaint("weight_decay", f"{self.weight_decay}", "none with adam: adamw has it")
        return self


class TrainConfig(Section):
    """Updates and batches. Batch sizes are global and count sequences: what a replica gets follows from how many there are.

    `micro_batch_size` sequences, over all replicas, are computed at once; their gradients are added up until
    `global_batch_size` is reached, and reduced once. `compile: auto` picks XLA or graph by device and precision.
    The loss scale is float16's alone: halved at an overflow, doubled after `loss_scale_growth_steps` steps without one.

    `steps_per_loop` updates are made in one call of TensorFlow, or as many as fit into `loop_seconds`: between calls a stop
    is heard. `deterministic` makes two runs on the same devices equal to the last bit. `label_smoothing` gives so much of
    each target's weight to all classes alike (Szegedy et al. 2016, arXiv:1512.00567), in training alone.
    """

    steps: Count
    global_batch_size: Count
    micro_batch_size: Count | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    steps_per_loop: Count = 10
    loop_seconds: Annotated[float, Field(gt=0.0)] = 10.0
    deterministic: bool = False
    compile: Literal["auto", "xla", "graph"] = "auto"
    initial_loss_scale: Annotated[float, Field(ge=1.0)] = 32_768.0
    loss_scale_growth_steps: Count = 2_000
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise complaint(
                "micro_batch_size",
                f"{self.micro_batch_size}",
                f"a divisor of `global_batch_size`, which is {self.global_batch_size}",
            )
        return self
