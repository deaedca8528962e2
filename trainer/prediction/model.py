"""A run's model as a checkpoint has it, on this machine's first device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from trainer.checkpoint import choose_checkpoint, read_state, read_weights
from trainer.config import Config, DistributionConfig
from trainer.data.tokenizer import Tokenizer
from trainer.distribution import connect
from trainer.encryption.files import Encryption
from trainer.pretrained.trained import merge_low_rank
from trainer.run_directory import open_run
from trainer.sizes import Sizes
from trainer.step import PRECISIONS
from trainer.training_state import create_weights
from trainer.weights import assign_weights


@dataclass(frozen=True)
class TrainedModel:
    """All that predictions follow from. `labels` are the names of the classes in the order of their numbers;
    `has_unanswerable` says whether the training data had questions that cannot be answered."""

    config: Config
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    has_unanswerable: bool
    weights: Mapping[str, tf.Variable]

    @property
    def padding(self) -> int:
        return self.tokenizer.specials.padding

    def computed(self) -> dict[str, tf.Tensor]:
        """The weights in the precision that the model is computed in; to be called in a graph."""
        dtype = PRECISIONS[self.config.train.precision]
        return {name: tf.cast(weight, dtype) for name, weight in self.weights.items()}


def load_model(path: Path, checkpoint: str) -> TrainedModel:
    """The model of the run in `path`, low-rank pairs merged; `checkpoint` is a step, `best` or `latest`. Needs neither its
    store nor the folder that it was initialized from. Raises UserError where the run or the checkpoint is not there."""
    run, given = open_run(path)
    chosen = choose_checkpoint(run.checkpoints, checkpoint, given.checkpoint.best_metric)
    encryption = Encryption.of(given.security)
    _, identity = read_state(chosen, encryption)
    tokenizer, labels = Tokenizer.load(run.tokenizer, encryption), tuple(identity.get("data.labels") or ())
    connect(DistributionConfig(backend="single"))
    # What was frozen does not matter any more, and patterns may name low-rank pairs, which are no more.
    config = given.model_copy(
        update={
            "model": given.model.model_copy(update={"lora": None}),
            "optimizer": given.optimizer.model_copy(update={"freeze": ()}),
        }
    )
    weights = create_weights(config, Sizes(tokenizer.vocabulary_size, len(labels)))
    assign_weights(weights, merge_low_rank(given.model, read_weights(chosen, encryption)), str(chosen))
    return TrainedModel(config, tokenizer, labels, bool(identity.get("data.has_unanswerable")), weights)
