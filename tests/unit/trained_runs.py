"""Runs as training leaves them, for tests of what is made of them: their configuration, tokenizer, and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint import Checkpoint, write_checkpoint
from trainer.config import Config
from trainer.config_io import dump_config
from trainer.data.tokenizer import Tokenizer
from trainer.progress import Progress
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

TEXT = "The quick brown fox jumps over the lazy dog, and 0123456789 more of them; nothing else happens here."
GPT2 = {"family": "gpt", "num_layers": 2, "num_heads": 4, "width": 32}
LLAMA = {
    **GPT2,
    "num_key_value_heads": 2,
    "positions": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "biases": False,
}
BERT = {"family": "bert", "num_layers": 2, "num_heads": 4, "width": 32}
T5 = {"family": "t5", "num_layers": 2, "num_heads": 4, "width": 32, "num_decoder_layers": 1}
T5_1_1 = {**T5, "activation": "gated_gelu", "tied_output": False, "width_per_head": 12}
BAG = {"family": "bag_of_embeddings", "width": 16}
PRE_NORM = {"family": "encoder_decoder", "num_layers": 1, "num_heads": 2, "width": 16}


def trained_run(
    directory: Path, task: str, model: dict[str, Any], labels: tuple[str, ...] = (), seed: int = 0, **data: Any
) -> Path:
    """The folder of a run of one step with sequences of 12 tokens, whose weights are all random, gains and biases too."""
    is_records = task not in ("language_modeling", "masked_language_modeling")
    kind = "word" if model["family"] in ("bert", "t5") else "character"
    tokenizer = {"kind": kind, "vocabulary_size": 300} if kind == "word" else {"kind": kind}
    values: dict[str, Any] = {
        "run": {"name": "trained", "directory": str(directory)},
        "task": task,
        "data": {
            "store": str(directory / "store"),
            "format": "jsonl" if is_records else "text",
            "train": [{"path": "train.jsonl"}],
            "sequence_length": 12,
            "tokenizer": tokenizer,
            **data,
        },
        "model": model,
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 1, "global_batch_size": 1},
    }
    config = Config.model_validate(values)
    trained = Tokenizer.train(config.data.tokenizer, [TEXT])
    run = directory / "trained"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    trained.save(run / "tokenizer.json")
    generator = np.random.default_rng(seed)
    weights = {}
    for name, parameter in run_parameters(config, Sizes(trained.vocabulary_size, len(labels))).items():
        scale = 0.3 if len(parameter.shape) > 1 else 0.1
        is_gain = parameter.initializer == "ones"
        weights[name] = (generator.normal(0.0, scale, parameter.shape) + is_gain).astype(np.float32)
    progress = Progress(step=1, num_samples=1)
    write_checkpoint(run / "checkpoints", Checkpoint(weights, {}, progress, {"data.labels": list(labels)}), {})
    return run
