"""The whole of one run, and what its sections demand of each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import model_validator

from trainer.config.data import AugmentationConfig, DataConfig, FieldsConfig, MaskingConfig
from trainer.config.model import ModelConfig
from trainer.config.privacy import PrivacyConfig
from trainer.config.run import (
    CheckpointConfig,
    DistributionConfig,
    DivergenceConfig,
    EvaluationConfig,
    LoggingConfig,
    RunConfig,
    WatchdogConfig,
)
from trainer.config.section import Section, complaint
from trainer.config.security import SecurityConfig
from trainer.config.tasks import ENCODER_DECODERS, FAMILIES, FIELDS, METRICS, METRICS_OF_TEXTS, Task
from trainer.config.training import OptimizerConfig, TrainConfig

Packing = Literal["stream", "best_fit", "none"]

_LANGUAGE_MODELING = ("language_modeling", "masked_language_modeling")
_TEXT_TO_TEXT = ("translation", "summarization")
# Of `train.loss_chunk_tokens: auto`, by `model.recompute`: the bytes up to which all scores are there at once, and those of
# the scores of a chunk.
_AUTO_CHUNKS = {"none": (2**30, 2**27), "blocks": (2**26, 2**25)}
_LEAST_AUTO_CHUNK = 768  # positions
_UNSCORED = ("classification", "question_answering")  # tasks that ask for no scores over the vocabulary


class Config(Section):
    """The whole of one run."""

    run: RunConfig
    task: Task = "language_modeling"
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
    security: SecurityConfig = SecurityConfig()
    privacy: PrivacyConfig | None = None

    @property
    def packing(self) -> Packing:
        """How samples fill rows: what `data.pack` means for the task."""
        if self.data.pack is None:
            default: dict[Task, Packing] = {"classification": "none", "question_answering": "none"}
            return default.get(self.task, "stream" if self.task in _LANGUAGE_MODELING else "best_fit")
        if self.data.pack is True:
            return "stream" if self.task in _LANGUAGE_MODELING else "best_fit"
        return "best_fit" if self.data.pack == "best_fit" else "none"

    @property
    def target_length(self) -> int:
        """The tokens of a row of an encoder-decoder's targets."""
        return self.data.target_length or self.data.sequence_length

    @property
    def text_fields(self) -> tuple[str, str]:
        """The fields that hold what is read and what is to be written, in tasks from text to text."""
        return ("source", "target") if self.task == "translation" else ("document", "summary")

    def loss_chunk(self, num_positions: int, vocabulary_size: int) -> int | None:
        """Of how many positions at once the loss over the vocabulary is computed; None where it is all of them."""
        position_bytes = 4 * vocabulary_size  # scores are float32
        match self.train.loss_chunk_tokens:
            case None:
                chunk = num_positions
            case "auto":
                all_bytes, chunk_bytes = _AUTO_CHUNKS[self.model.recompute]
                is_small = num_positions * position_bytes <= all_bytes
                chunk = num_positions if is_small else max(_least_chunk(num_positions), chunk_bytes // position_bytes)
            case number:
                chunk = number
        return chunk if chunk < num_positions else None

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Config:
        for section, key, got, expected, inner in self._misfits():
            raise complaint(section, got, expected, key, *inner)
        return self

    def _misfits(self) -> Iterator[tuple[str, str, str, str, tuple[str | int, ...]]]:
        """Section, key, what was got and expected, and where within the key."""
        yield from self._misfits_of_training()
        yield from self._misfits_of_data()
        yield from self._misfits_of_texts()
        if self.privacy is not None:
            yield from self._misfits_of_privacy()

    def _misfits_of_training(self) -> Iterator[tuple[str, str, str, str, tuple[str | int, ...]]]:
        optimizer, train = self.optimizer, self.train
        if optimizer.decay_steps is not None and optimizer.warmup_steps + optimizer.decay_steps > train.steps:
            expected = f"warm-up and decay within train.steps, which is {train.steps}"
            yield "optimizer", "decay_steps", f"{optimizer.decay_steps}", expected, ()
        if optimizer.kind == "muon" and (self.model.lora is not None or self.model.family == "bag_of_embeddings"):
            what = self.model.family if self.model.lora is None else "lora"
            yield "optimizer", "kind", "muon", f"another: with {what} no matrix within the model is trained", ()
        if train.shard_optimizer and optimizer.kind not in ("adamw", "adam", "lion"):
            expected = f"false: {optimizer.kind} needs the whole of a weight; adamw, adam and lion do not"
            yield "train", "shard_optimizer", "true", expected, ()
        if train.shard_optimizer and self.distribution.backend != "horovod":
            expected = f"false with distribution.backend {self.distribution.backend}: it belongs to horovod"
            yield "train", "shard_optimizer", "true", expected, ()
        if self.model.family not in FAMILIES[self.task]:
            expected = f"{' or '.join(FAMILIES[self.task])} for {self.task}"
            yield "model", "family", self.model.family, expected, ()
        if self.model.pooling != "first" and self.task != "classification":
            yield "model", "pooling", self.model.pooling, "nothing: it belongs to classification", ()
        if self.task in _UNSCORED and isinstance(train.loss_chunk_tokens, int):
            expected = f"nothing: {self.task} has no scores over a vocabulary"
            yield "train", "loss_chunk_tokens", f"{train.loss_chunk_tokens}", expected, ()
        if self.data.folds is not None and self.evaluation.generate:
            expected = "0 with data.folds: the training data are kept as tokens, without texts to compare with"
            yield "evaluation", "generate", f"{self.evaluation.generate}", expected, ()
        metrics = METRICS[self.task]
        if self.checkpoint.best_metric not in metrics:
            expected = f"one of {', '.join(metrics)} for {self.task}"
            yield "checkpoint", "best_metric", repr(self.checkpoint.best_metric), expected, ()
        if self.checkpoint.best_metric in METRICS_OF_TEXTS and not self.evaluation.generate:
            expected = "a metric that evaluations have; for this one set evaluation.generate"
            yield "checkpoint", "best_metric", repr(self.checkpoint.best_metric), expected, ()
        if self.evaluation.generate and self.task not in _TEXT_TO_TEXT:
            yield "evaluation", "generate", f"{self.evaluation.generate}", f"0: {self.task} has no metric of texts", ()

    def _misfits_of_privacy(self) -> Iterator[tuple[str, str, str, str, tuple[str | int, ...]]]:
        """What a bound for single samples would not hold with."""
        if self.packing != "none":
            pack = "nothing" if self.data.pack is None else f"{self.data.pack}".lower()
            yield "data", "pack", pack, "false with privacy: a sample has a row of its own", ()
        if any(source.weight is not None for source in self.data.train):
            yield "data", "train", "weights", "none with privacy: each sample is as likely to be taken", ()
        if self.data.augmentation.mixup:
            expected = "0 with privacy: a sample's gradient would tell of another"
            yield "data", "augmentation", f"mixup {self.data.augmentation.mixup}", expected, ("mixup",)
        if self.optimizer.clip_norm is not None:
            expected = "null with privacy: each sample's gradient is clipped, to privacy.clip_norm"
            yield "optimizer", "clip_norm", f"{self.optimizer.clip_norm:g}", expected, ()
        if self.train.precision == "float16":
            yield "train", "precision", "float16", "bfloat16 or float32 with privacy", ()
        if self.train.micro_batch_size is None:
            expected = "a number with privacy: the gradients of so many samples are held at once"
            yield "train", "micro_batch_size", "null", expected, ()
        if self.train.shard_optimizer:
            yield "train", "shard_optimizer", "true", "false with privacy: noise is added to whole gradients", ()
        if self.distribution.wire_precision != "float32":
            yield "distribution", "wire_precision", self.distribution.wire_precision, "float32 with privacy", ()
        if self.divergence.spike_deviations is not None:
            expected = "null with privacy: no noise is added to what it judges by"
            yield "divergence", "spike_deviations", f"{self.divergence.spike_deviations:g}", expected, ()

    def _misfits_of_personal_data(self, action: str) -> Iterator[tuple[str, str, str, str, tuple[str | int, ...]]]:
        if action == "drop" and self.data.format == "text":
            expected = "mask with data.format text, where a file is one text"
            yield "data", "personal_data", "drop", expected, ("action",)
        if action == "mask" and self.task == "question_answering":
            expected = "drop for question_answering: answers would no longer be where the data say"
            yield "data", "personal_data", "mask", expected, ("action",)
        if self.data.augmentation.back_translations is not None:
            expected = "none with data.personal_data: they would bring back what is masked"
            yield "data", "augmentation", repr(self.data.augmentation.back_translations), expected, ("back_translations",)

    def _misfits_of_data(self) -> Iterator[tuple[str, str, str, str, tuple[str | int, ...]]]:
        data, task = self.data, self.task
        if data.folds is not None and data.augmentation.mixup:
            expected = "0 with data.folds: a sample could be mixed with one that is held out"
            yield "data", "augmentation", f"mixup {data.augmentation.mixup}", expected, ("mixup",)
        if data.personal_data is not None:
            yield from self._misfits_of_personal_data(data.personal_data.action)
        if data.duplicates is not None and data.format == "text":
            yield "data", "duplicates", "data.format text", "another format: there a file is one text", ()
        if data.decontamination is not None and (data.format == "text" or not data.validation):
            got, expected = (
                ("no validation data", "some that training texts are compared with")
                if data.format != "text"
                else ("data.format text", "another format: there a file is one text, and would be left out whole")
            )
            yield "data", "decontamination", got, expected, ()
        for field in sorted(data.fields.model_fields_set - set(FIELDS[task])):
            if getattr(data.fields, field) != FieldsConfig.model_fields[field].default:
                yield "data", "fields", field, f"the fields of {task}: {', '.join(FIELDS[task])}", (field,)
        if data.fields.group is not None and (self.packing != "none" or data.format == "lines"):
            got = "data.format lines" if data.format == "lines" else f"pack {data.pack}".lower()
            expected = "records with fields, each in a row of its own (pack: false), where data.fields.group is given"
            yield "data", "fields", got, expected, ("group",)
        if data.format == "text" and task not in _LANGUAGE_MODELING:
            yield "data", "format", "text", f"a format of records for {task}, such as jsonl or tsv", ()
        if (data.format == "squad") and task != "question_answering":
            yield "data", "format", "squad", "it only for question_answering", ()
        for split in ("train", "validation"):
            for number, source in enumerate(getattr(data, split)):
                paired = source.target_path is not None
                if paired and (task not in _TEXT_TO_TEXT or data.format != "lines"):
                    expected = "it only for translation and summarization, with data.format lines"
                    yield "data", split, repr(source.target_path), expected, (number, "target_path")
                if not paired and task not in _LANGUAGE_MODELING and data.format == "lines":
                    expected = "the file whose lines belong to these"
                    yield "data", split, "no `target_path`", expected, (number, "target_path")
        if task == "question_answering" and self.packing != "none":
            yield "data", "pack", f"{data.pack}".lower(), "false: the windows of a context fill their rows", ()
        if task == "question_answering" and data.window_overlap >= data.sequence_length:
            yield "data", "window_overlap", f"{data.window_overlap}", "less than sequence_length", ()
        positions = max(data.sequence_length, self.target_length if self.model.family in ENCODER_DECODERS else 0)
        if self.model.max_positions is not None and self.model.positions == "learned" and self.model.max_positions < positions:
            expected = f"at least the {positions} tokens of a sequence"
            yield "model", "max_positions", f"{self.model.max_positions}", expected, ()

    def _misfits_of_texts(self) -> Iterator[tuple[str, str, str, str, tuple[str | int, ...]]]:
        data, task = self.data, self.task
        belongs: list[tuple[str, Any, bool, str]] = [
            ("target_length", data.target_length, self.model.family in ENCODER_DECODERS, "an encoder-decoder"),
            ("labels", data.labels, task == "classification", "classification"),
            ("multi_label", data.multi_label or None, task == "classification", "classification"),
            ("prompt", data.prompt, task in _TEXT_TO_TEXT, "translation and summarization"),
        ]
        for key, value, fits, owner in belongs:
            if value is not None and not fits:
                yield "data", key, f"{value}", f"nothing: it belongs to {owner}", ()
        if data.masking != MaskingConfig() and task != "masked_language_modeling":
            yield "data", "masking", "a section", "it only for masked_language_modeling", ()
        augmentation = data.augmentation
        if not augmentation.is_off and task not in ("classification", *_TEXT_TO_TEXT):
            yield "data", "augmentation", "a section", "it only for classification, translation and summarization", ()
        if augmentation.mixup and (task != "classification" or self.packing != "none"):
            yield "data", "augmentation", f"{augmentation.mixup}", "0, or classification without `pack`", ("mixup",)
        if augmentation != AugmentationConfig() and augmentation.is_off:
            yield "data", "augmentation", "no share above 0", "at least one", ()


def _least_chunk(num_positions: int) -> int:
    """The least that `auto` makes of so many positions, or below twice as much what makes chunks of one size, as 1,024 of
    8,192: what is missing in a chunk is padding."""
    most = max(1, num_positions // _LEAST_AUTO_CHUNK)
    even = next((number for number in range(most, most // 2, -1) if num_positions % number == 0), most)
    return -(-num_positions // even)
