"""The schema of the configuration: one frozen model a section, and the arithmetic that follows from them alone.

No TensorFlow and no input or output here: `config_io` reads files, and `drumline check` answers in a fraction of a second.
Every default of Drumline stands in this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from trainer.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """What all sections share: they cannot change, unknown keys are errors, and `"12"` is not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunConfig(Section):
    """What the run is called and where it lives: everything it writes goes to `directory/name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    directory: Annotated[str, Field(min_length=1)] = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1


class SourceConfig(Section):
    """Input files, and how often they are drawn from.

    `weight` is this source's share of the samples, relative to the other sources. Without weights all sources are one
    data set, of which every sample comes once an epoch. `begin` and `end` take a part of each file (shares of its bytes,
    moved on to the next line), so that one file can serve for training and validation.
    """

    path: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(gt=0.0)] | None = None
    begin: Share = 0.0
    end: Share = 1.0

    @model_validator(mode="after")
    def _begin_comes_before_end(self) -> SourceConfig:
        if self.begin >= self.end:
            raise _complaint("end", f"{self.end}", f"more than `begin`, which is {self.begin}")
        return self


class FieldsConfig(Section):
    """Which field of a record holds what: a name, or, in CSV and TSV files without a header line, a column number from 0."""

    text: str | Annotated[int, Field(ge=0)] = "text"


class TokenizerConfig(Section):
    """How text becomes tokens: trained by `prepare` on the training sources, or a `tokenizer.json` from anywhere."""

    kind: Literal["bpe", "wordpiece", "character", "pretrained"]
    vocabulary_size: Annotated[int, Field(ge=2)] | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _options_belong_to_the_kind(self) -> TokenizerConfig:
        trained = self.kind in ("bpe", "wordpiece")
        if trained and self.vocabulary_size is None:
            raise _complaint("vocabulary_size", "nothing", f"the number of tokens that a {self.kind} tokenizer shall have")
        if trained and self.vocabulary_size is not None and self.vocabulary_size < 300:
            raise _complaint("vocabulary_size", f"{self.vocabulary_size}", "at least 300: the 256 bytes come first")
        if not trained and self.vocabulary_size is not None:
            raise _complaint("vocabulary_size", f"{self.vocabulary_size}", f"nothing: a {self.kind} tokenizer brings its own")
        if self.kind == "pretrained" and self.path is None:
            raise _complaint("path", "nothing", "the tokenizer.json to use")
        if self.kind != "pretrained" and self.path is not None:
            raise _complaint("path", repr(self.path), f"nothing: a {self.kind} tokenizer is trained, not read")
        return self


class DataConfig(Section):
    """From files to sequences. `store` is the folder that `prepare` fills and training maps into memory.

    With `pack` the documents of a source are one stream of tokens that is cut into sequences of `sequence_length`;
    without it every document begins a sequence of its own and the last one is padded.
    """

    store: Annotated[str, Field(min_length=1)]
    train: Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False)]
    validation: Annotated[tuple[SourceConfig, ...], Field(strict=False)] = ()
    format: Literal["text", "lines", "jsonl", "csv", "tsv", "parquet"] = "text"
    fields: FieldsConfig = FieldsConfig()
    sequence_length: Annotated[int, Field(ge=2)]
    pack: bool = True
    tokenizer: TokenizerConfig

    @field_validator("train")
    @classmethod
    def _weights_on_all_or_none(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        weighted = [source.weight is not None for source in sources]
        if any(weighted) and not all(weighted):
            missing = weighted.index(False)
            raise _complaint(missing, "no `weight`", "a weight on every source, or on none", "weight")
        return sources

    @field_validator("validation")
    @classmethod
    def _validation_is_not_a_mixture(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        for number, source in enumerate(sources):
            if source.weight is not None:
                raise _complaint(number, f"{source.weight}", "no weight: validation sources are read as one data set", "weight")
        return sources

    @model_validator(mode="after")
    def _columns_by_number_only_in_tables(self) -> DataConfig:
        if isinstance(self.fields.text, int) and self.format not in ("csv", "tsv"):
            raise _complaint(
                "fields",
                f"column {self.fields.text}",
                f"a name: files of format {self.format} have no column numbers",
                "text",
            )
        return self


class ModelConfig(Section):
    """A decoder. GPT-2 is the default of every choice; Llama is `positions: rotary`, `normalization: rms_norm`,
    `activation: swiglu`, `biases: false`, and, where it applies, `num_key_value_heads` and `tied_output: false`."""

    family: Literal["gpt"] = "gpt"
    num_layers: Count
    num_heads: Count
    num_key_value_heads: Count | None = None
    width: Count
    feed_forward_width: Count | None = None
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: Annotated[float, Field(gt=1.0)] = 10_000.0
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"
    normalization_epsilon: Annotated[float, Field(gt=0.0)] = 1.0e-5
    activation: Literal["gelu", "swiglu"] = "gelu"
    biases: bool = True
    tied_output: bool = True
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_heads

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward layer: four times the model's, or for SwiGLU, which has three matrices instead of
        two, two thirds of that rounded up to a multiple of 64 (Shazeer 2020, arXiv:2002.05202)."""
        if self.feed_forward_width is not None:
            return self.feed_forward_width
        if self.activation == "swiglu":
            return -(-8 * self.width // (3 * 64)) * 64
        return 4 * self.width

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.width % self.num_heads:
            raise _complaint("width", f"{self.width}", f"a multiple of `num_heads`, which is {self.num_heads}")
        if self.num_heads % self.key_value_heads:
            raise _complaint(
                "num_key_value_heads", f"{self.key_value_heads}", f"a divisor of `num_heads`, which is {self.num_heads}"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise _complaint(
                "num_heads", f"{self.num_heads}", f"an even width a head for rotary positions; it is {self.head_width}"
            )
        return self


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); decay touches matrices only, never biases, norms or gains.

    `decay_steps` belongs to `warmup_stable_decay`: the learning rate falls over the last so many steps.
    """

    kind: Literal["adamw"] = "adamw"
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

    @model_validator(mode="after")
    def _schedule_has_what_it_needs(self) -> OptimizerConfig:
        if self.minimum_learning_rate > self.learning_rate:
            raise _complaint(
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
            raise _complaint("decay_steps", "nothing" if self.decay_steps is None else f"{self.decay_steps}", expected)
        return self


class TrainConfig(Section):
    """Updates and batches. Batch sizes are global and count sequences: what a replica gets follows from how many there are.

    `micro_batch_size` sequences, over all replicas, are computed at once; their gradients are added up until
    `global_batch_size` is reached, and reduced once. `compile: auto` picks XLA or graph by device and precision.
    The loss scale is float16's alone: halved at an overflow, doubled after `loss_scale_growth_steps` steps without one.

    `steps_per_loop` updates are made in one call of TensorFlow, or as many as fit into `loop_seconds`: between calls a stop
    is heard. `deterministic` makes two runs on the same devices equal to the last bit.
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

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise _complaint(
                "micro_batch_size",
                f"{self.micro_batch_size}",
                f"a divisor of `global_batch_size`, which is {self.global_batch_size}",
            )
        return self


class DistributionConfig(Section):
    """How replicas work together. `num_replicas` is for `mirrored` alone: how many devices (default: all GPUs)."""

    backend: Literal["auto", "single", "mirrored", "multiworker", "horovod"] = "auto"
    num_replicas: Count | None = None
    wire_precision: Literal["float32", "float16"] = "float32"
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 300.0

    @model_validator(mode="after")
    def _replicas_only_mirrored(self) -> DistributionConfig:
        if self.num_replicas is not None and self.backend != "mirrored":
            raise _complaint(
                "num_replicas",
                f"{self.num_replicas}",
                f"nothing with backend {self.backend}: there the launcher decides",
            )
        return self


class EvaluationConfig(Section):
    """Validation loss, every so many steps and at the end, over the first `batches` batches of a fixed order (null: all)."""

    every: Count | None = 200
    batches: Count | None = 20


class CheckpointConfig(Section):
    """A checkpoint every so many steps and at the end, written while training goes on where `background` is true.

    `directory` is a path, or a URL of any file system that fsspec knows; by default the run's folder `checkpoints`. What
    stays: the newest `keep_last`, every one whose step is a multiple of `keep_every`, and the `keep_best` of the least
    `best_metric`. When `max_failures` saves in a row have failed, the run ends.
    """

    directory: Annotated[str, Field(min_length=1)] | None = None
    every: Count = 200
    keep_last: Count = 3
    keep_every: Count | None = None
    keep_best: Annotated[int, Field(ge=0)] = 1
    best_metric: Literal["loss", "perplexity"] = "loss"
    background: bool = True
    max_failures: Count = 3


class DivergenceConfig(Section):
    """When training no longer leads anywhere, and what is done then.

    An update whose loss or gradient is not finite is skipped. More than `max_skipped_in_a_row` of these, or a loss that is
    higher than the median of the last `spike_window` losses by more than `spike_deviations` robust standard deviations
    (1.4826 times their median absolute deviation; null: any loss will do), roll the run back to its last good checkpoint
    and step over the samples in between, at most `max_rollbacks` times.
    """

    max_skipped_in_a_row: Annotated[int, Field(ge=0)] = 3
    spike_deviations: Annotated[float, Field(gt=0.0)] | None = None
    spike_window: Annotated[int, Field(ge=8)] = 64
    max_rollbacks: Annotated[int, Field(ge=0)] = 3


class WatchdogConfig(Section):
    """When a run that makes no progress is given up.

    A call of TensorFlow may take `times_expected` times as long as was measured before, and `least_seconds` at least. What
    comes first of its kind (joining the others, the first collective, compiling) may take `startup_seconds`. A process that
    was not heard of for `silence_seconds` counts as stopped or cut off.
    """

    enabled: bool = True
    times_expected: Annotated[float, Field(gt=1.0)] = 20.0
    least_seconds: Annotated[float, Field(gt=0.0)] = 120.0
    startup_seconds: Annotated[float, Field(gt=0.0)] = 1800.0
    silence_seconds: Annotated[float, Field(ge=3.0)] = 20.0


class LoggingConfig(Section):
    """A line in `metrics.jsonl`, TensorBoard and on the console every so many steps."""

    every: Count = 10


class SamplingConfig(Section):
    """How `drumline predict` continues a text; given on its command line, not in the YAML.

    The likelier `top_k` tokens, and of these the fewest that together reach the probability `top_p`, are drawn from
    at `temperature`; 0 takes the likeliest each time.
    """

    max_tokens: Count = 100
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    samples: Count = 1
    seed: Annotated[int, Field(ge=0)] = 1
    batch_size: Count = 8


class Config(Section):
    """The whole of one run."""

    run: RunConfig
    task: Literal["language_modeling"] = "language_modeling"
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    distribution: DistributionConfig = DistributionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _schedule_fits_the_run(self) -> Config:
        if (
            self.optimizer.decay_steps is not None
            and self.optimizer.warmup_steps + self.optimizer.decay_steps > self.train.steps
        ):
            raise _complaint(
                "optimizer",
                f"{self.optimizer.decay_steps}",
                f"warm-up and decay within train.steps, which is {self.train.steps}",
                "decay_steps",
            )
        return self


@dataclass(frozen=True)
class BatchPlan:
    """How one update's `global_batch_size` sequences fall on replicas and micro-batches.

    Replica r takes the rows `r * rows_per_replica ...` of the update, in `num_micro_batches` parts of `rows_per_micro_batch`.
    """

    global_batch_size: int
    num_replicas: int
    num_micro_batches: int
    rows_per_micro_batch: int

    @property
    def rows_per_replica(self) -> int:
        return self.num_micro_batches * self.rows_per_micro_batch

    def first_rows(self, replica: int) -> Iterator[int]:
        """The global row at which each of a replica's micro-batches begins."""
        for micro_batch in range(self.num_micro_batches):
            yield replica * self.rows_per_replica + micro_batch * self.rows_per_micro_batch


def plan_batches(train: TrainConfig, num_replicas: int) -> BatchPlan:
    """Divides the batch over `num_replicas`; raises ConfigError where it does not divide."""
    micro_batch_size = train.micro_batch_size or train.global_batch_size
    key = "micro_batch_size" if train.micro_batch_size else "global_batch_size"
    if micro_batch_size % num_replicas:
        below = micro_batch_size - micro_batch_size % num_replicas
        choices = " or ".join(str(size) for size in (below, below + num_replicas) if size)
        raise ConfigError(
            f"train.{key}: got {micro_batch_size}, expected a multiple of the number of replicas, which is {num_replicas}; "
            f"batch sizes are global: take {choices}, or another number of replicas"
        )
    return BatchPlan(
        global_batch_size=train.global_batch_size,
        num_replicas=num_replicas,
        num_micro_batches=train.global_batch_size // micro_batch_size,
        rows_per_micro_batch=micro_batch_size // num_replicas,
    )


def _complaint(key: str | int, got: str, expected: str, *inner: str) -> PydanticCustomError:
    """An error of a validator that names the key below its own model: `config_io` finds the line by `below`."""
    return PydanticCustomError(
        "complaint", "got {got}, expected {expected}", {"below": (key, *inner), "got": got, "expected": expected}
    )
