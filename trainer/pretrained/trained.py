"""What of a run is exported: the weights of one of its checkpoints, with low-rank pairs merged. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.checkpoint import choose_checkpoint, read_state, read_weights
from trainer.config import Config, ModelConfig
from trainer.data.tokenizer import Tokenizer
from trainer.encryption.files import Encryption
from trainer.run_directory import open_run
from trainer.tasks.parameters import is_low_rank


@dataclass(frozen=True)
class TrainedRun:
    """The model is one without `lora`, since its pairs are in the matrices; `labels` are the classes by their numbers."""

    config: Config
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    step: int


def read_run(path: Path, checkpoint: str) -> TrainedRun:
    """The run in `path` at a checkpoint: a step, `best` or `latest`. Needs neither its store nor the folder that it was
    initialized from. Raises UserError where the run or the checkpoint is not there."""
    run, config = open_run(path)
    chosen = choose_checkpoint(run.checkpoints, checkpoint, config.checkpoint.best_metric)
    encryption = Encryption.of(config.security)
    progress, identity = read_state(chosen, encryption)
    weights = merge_low_rank(config.model, read_weights(chosen, encryption))
    # A copy that is not validated again: the schema fills in what is missing, and nothing is.
    merged = config.model_copy(update={"model": config.model.model_copy(update={"lora": None, "initialize_from": None})})
    tokenizer, labels = Tokenizer.load(run.tokenizer, encryption), tuple(identity.get("data.labels") or ())
    return TrainedRun(merged, tokenizer, labels, weights, progress.step)


def merge_low_rank(model: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights that compute without low-rank pairs what they compute with them: each pair's product, times alpha / rank, is
    added to the matrix that it stands beside (Hu et al. 2022, arXiv:2106.09685, section 4.1)."""
    merged = {name: weight for name, weight in weights.items() if not is_low_rank(name)}
    for name in weights:
        if name.endswith(".lora_down"):
            assert model.lora is not None
            matrix = name.removesuffix(".lora_down")
            product = weights[name] @ weights[f"{matrix}.lora_up"]
            merged[f"{matrix}.kernel"] = merged[f"{matrix}.kernel"] + product * np.float32(model.lora.scale)
    return merged
