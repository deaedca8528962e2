"""The shares of the optimizer's state: together they are all of it, and each is one N-th."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from trainer.config_io import load_config
from trainer.errors import ConfigError
from trainer.optimizers.shards import Share
from trainer.sizes import Sizes


@pytest.mark.parametrize("num_elements", [1, 2, 7, 8, 384])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_the_pieces_of_all_ranks_one_after_another_are_the_padded_weight(num_elements: int, num_ranks: int) -> None:
    shares = [Share(rank, num_ranks) for rank in range(num_ranks)]
    padded = np.pad(np.arange(num_elements), (0, shares[0].padding(num_elements)))
    pieces = [padded[slice(*share.bounds(num_elements))] for share in shares]
    assert all(len(piece) == shares[0].piece_length(num_elements) for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), padded)
    assert len(padded) - num_elements < num_ranks


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_a_rank_of_two_keeps_half_of_the_optimizers_bytes(tensorflow: ModuleType, small_config: Path, kind: str) -> None:
    from trainer.training_state import create_state, own_share

    overrides = [f"optimizer.kind={kind}", "train.shard_optimizer=true", "distribution.backend=horovod"]
    config = load_config(small_config, overrides)

    def num_bytes(share: Share | None) -> int:
        slots = create_state(config, Sizes(300), share).slots
        return sum(4 * variable.shape.num_elements() for slot in slots.values() for variable in slot.values())

    assert own_share(config, 0, 1) is None
    assert num_bytes(own_share(config, 1, 2)) == num_bytes(None) / 2


@pytest.mark.parametrize("kind", ["lamb", "adafactor", "muon"])
def test_an_optimizer_that_needs_whole_weights_is_not_sharded(small_config: Path, kind: str) -> None:
    overrides = [f"optimizer.kind={kind}", "train.shard_optimizer=true", "distribution.backend=horovod"]
    with pytest.raises(ConfigError, match=f"{kind} needs the whole of a weight"):
        load_config(small_config, overrides)


def test_only_horovod_shards_the_optimizer(small_config: Path) -> None:
    with pytest.raises(ConfigError, match="it belongs to horovod"):
        load_config(small_config, ["train.shard_optimizer=true"])
