"""Which samples an update of private training takes: each with the same probability, as a function of a secret."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from trainer.data.order import PADDING_ID, SampleOrder, first_of_permutation
from trainer.data.windows import Int64Array
from trainer.progress import PrivacyRecord


@dataclass(frozen=True)
class PoissonOrder:
    """Stands in for a `SampleOrder`: the positions `n * capacity ...` are the rows of update n, those without a sample -1.

    That each of N samples is there with probability q is the same as that their number is binomial and each choice of so many
    as likely: the number is drawn, and the first so many of a permutation are taken. `secret` is of 128 bits.
    """

    order: SampleOrder
    sampling_rate: float
    capacity: int
    secret: int

    @classmethod
    def of(cls, order: SampleOrder, record: PrivacyRecord, capacity: int) -> PoissonOrder:
        """That of a run that was begun so."""
        return cls(order, record.sampling_rate, capacity, int.from_bytes(record.secret_bytes, "little"))

    @property
    def num_samples(self) -> int:
        return self.order.num_samples

    def with_seed(self, seed: int) -> PoissonOrder:
        """Itself: it follows from its secret alone."""
        return self

    def locate(self, ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        return self.order.locate(ids)

    def sample_ids(self, first: int, count: int) -> Int64Array:
        """The ids at the positions `first ... first + count - 1`, which may be of several updates."""
        updates, rows = np.divmod(np.arange(first, first + count, dtype=np.int64), self.capacity)
        ids = np.empty(count, np.int64)
        for update in np.unique(updates).tolist():
            here = updates == update
            ids[here] = _ids_of_update(self, update)[rows[here]]
        return ids


@functools.lru_cache(maxsize=8)
def _ids_of_update(order: PoissonOrder, update: int) -> Int64Array:
    from scipy.stats import binom

    digest = hashlib.sha256(b"sample" + order.secret.to_bytes(16, "little") + update.to_bytes(8, "little")).digest()
    uniform = int.from_bytes(digest[:8], "little") / 2**64
    number = min(int(binom.ppf(uniform, order.num_samples, order.sampling_rate)), order.capacity)
    places = first_of_permutation(order.num_samples, number, digest[16:])
    ids = np.full(order.capacity, PADDING_ID, np.int64)
    ids[:number] = order.order.ids_at(places)
    return ids
