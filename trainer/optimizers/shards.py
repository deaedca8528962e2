"""How the optimizer's state is cut into the ranks' shares. No TensorFlow: `drumline check` counts with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What one of N ranks keeps of each weight (ZeRO stage 1; Rajbhandari et al. 2020, arXiv:1910.02054): the numbers of the
    weight in row-major order, padded to a multiple of N, are cut into N equal pieces; the rank has the piece of its number."""

    rank: int
    num_ranks: int

    def piece_length(self, num_elements: int) -> int:
        return -(-num_elements // self.num_ranks)

    def padding(self, num_elements: int) -> int:
        """How many numbers are added at the end of a weight."""
        return self.piece_length(num_elements) * self.num_ranks - num_elements

    def bounds(self, num_elements: int) -> tuple[int, int]:
        """Where the rank's piece of the padded weight begins and ends."""
        length = self.piece_length(num_elements)
        return self.rank * length, (self.rank + 1) * length
