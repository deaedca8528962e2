"""What of a model's size the data decides. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The tokens that the tokenizer has, and the classes that there are (0 where the task has none)."""

    vocabulary_size: int
    num_labels: int = 0
