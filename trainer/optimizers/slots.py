"""What an optimizer keeps of each weight beside it: names and shapes. No TensorFlow: `drumline check` counts with it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from trainer.config import OptimizerConfig
from trainer.models.parameters import Parameter
from trainer.optimizers.shards import Share

Shape = tuple[int, ...]


def slot_shapes(optimizer: OptimizerConfig, parameter: Parameter) -> dict[str, Shape]:
    """The variables that belong to a weight, by what they hold; none of a weight that is not trained. All are float32 and
    begin at zero."""
    if not parameter.is_trainable:
        return {}
    shape = parameter.shape
    moments = {"first_moments": shape, "second_moments": shape}
    match optimizer.kind:
        case "adamw" | "adam" | "lamb":
            return moments
        case "lion":
            return {"momentum": shape}
        case "adafactor" if len(shape) == 2:
            return {"second_moment_rows": shape[:1], "second_moment_columns": shape[1:]}
        case "adafactor":
            return {"second_moments": shape}
        case "muon":
            return {"momentum": shape} if parameter.is_hidden_matrix else moments


def num_slot_elements(optimizer: OptimizerConfig, parameters: Iterable[Parameter], num_shares: int = 1) -> int:
    """How many numbers the optimizer keeps of all these weights; of so many shares, how many are in each."""
    share = Share(0, num_shares)
    return sum(share.piece_length(math.prod(shape)) for each in parameters for shape in slot_shapes(optimizer, each).values())
