"""Compares real pretrained weights here with what `transformers` computes with them, in float32, and lets SmolLM2 go on.

    python benchmarks/pretrained_parity.py [--folder DIR]

all-MiniLM-L6-v2: hidden states of texts of unequal length; SmolLM2-135M: logits. Largest absolute difference, and relative to
the largest magnitude. Needs `make parity`. The folders are written to DIR (default: weights), once.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from real_weights import minilm, smollm2

from trainer.config import Config, GenerationConfig
from trainer.config_io import load_config
from trainer.data.tokenizer import Tokenizer
from trainer.sizes import Sizes

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "A drumline keeps a whole band in step.",
    "In the beginning there was nothing, which exploded; since then everything has been going its own way, mostly downhill.",
)
PROMPT = "Photosynthesis is the process by which"
RUN = """\
run: {name: parity}
task: TASK
data:
  store: store
  format: FORMAT
  train: [{path: text.txt}]
  sequence_length: 64
model: {initialize_from: FOLDER}
optimizer: {learning_rate: 1.0e-3}
train: {steps: 1, global_batch_size: 1}
"""


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The largest difference, and its share of the largest magnitude."""
    absolute = float(np.abs(ours - theirs).max())
    return absolute, absolute / float(np.abs(theirs).max())


def begin(folder: Path, task: str) -> tuple[Config, Tokenizer, Mapping[str, Any]]:
    """A run that begins from a folder: configuration, tokenizer and weights."""
    from trainer.training_state import create_state, reset_state

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        data_format = "text" if task == "language_modeling" else "lines"
        file.write(RUN.replace("TASK", task).replace("FORMAT", data_format).replace("FOLDER", str(folder)))
        file.flush()
        config = load_config(Path(file.name))
    tokenizer = Tokenizer.load(folder)
    state = create_state(config, Sizes(tokenizer.vocabulary_size))
    reset_state(config, state)
    return config, tokenizer, state.weights


def compare_minilm(folder: Path) -> tuple[float, float]:
    """Of the real tokens of three texts, padded to the longest."""
    import tensorflow as tf
    import torch
    from transformers import AutoModel

    from trainer.models import bert

    config, tokenizer, weights = begin(folder, "masked_language_modeling")
    specials = tokenizer.specials
    rows = [[specials.begin, *tokenizer.encode(text), specials.separator] for text in TEXTS]
    tokens = np.full((len(rows), max(map(len, rows))), specials.padding, np.int32)
    mask = np.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, : len(row)], mask[number, : len(row)] = row, 1
    ours = bert.hidden_states(config.model, weights, tf.constant(tokens), tf.constant(mask)).numpy()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        given = {"input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(mask).long()}
        theirs = model(**given).last_hidden_state.numpy()
    return difference(ours[mask > 0], theirs[mask > 0])


def compare_smollm2(folder: Path) -> tuple[float, float, str]:
    """Of all tokens of one text; and how the prompt goes on, greedily."""
    import tensorflow as tf
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.generation import Writer
    from trainer.models import gpt

    config, tokenizer, weights = begin(folder, "language_modeling")
    tokens = np.array([tokenizer.encode(TEXTS[-1])], np.int32)
    ours = gpt.logits(config.model, weights, tf.constant(tokens)).numpy()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.tensor(tokens).long()).logits.numpy()
    writer = Writer(config, weights, tokenizer, GenerationConfig(temperature=0.0, max_tokens=24, batch_size=1))
    (written,) = writer.write([writer.read(tokenizer.encode(PROMPT), "the prompt")])
    return *difference(ours, theirs), written.text


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("weights"), help="where the models lie, or are written to")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    absolute, relative = compare_minilm(minilm(folder / "all-minilm-l6-v2"))
    print(json.dumps({"model": "all-MiniLM-L6-v2", "of": "hidden states", "largest": absolute, "relative": relative}))
    absolute, relative, text = compare_smollm2(smollm2(folder / "smollm2-135m"))
    print(json.dumps({"model": "SmolLM2-135M", "of": "logits", "largest": absolute, "relative": relative}))
    print(f"{PROMPT}{text}")


if __name__ == "__main__":
    main()
