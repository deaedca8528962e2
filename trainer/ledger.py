"""The ledger: what the run really consumed, as a rolling hash over sample ids that were read off the batches."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from trainer.checkpoint import Progress
from trainer.config import BatchPlan


class Ledger:
    """After each update the hash becomes sha256(hash before, the update's sample ids in the order of the global batch).

    So it does not depend on how many replicas there are, nor on where a run was stopped. `path` is None on processes
    other than the chief: they keep the hash and write nothing.
    """

    def __init__(self, path: Path | None, progress: Progress, plan: BatchPlan) -> None:
        self._path = path
        self._plan = plan
        self._step = progress.step
        self._num_samples = progress.num_samples
        self._hash = progress.ledger_hash
        self._write({"event": "start", "step": self._step, "num_replicas": plan.num_replicas})

    def consume(self, sample_ids: np.ndarray) -> None:
        """Takes the ids of some updates and writes a line: int64 [processes, updates, local replicas, micro-batches, rows]."""
        num_steps = sample_ids.shape[1]
        for ids in np.moveaxis(sample_ids, 1, 0).reshape(num_steps, -1):
            self._hash = rolled(self._hash, ids)
            self._num_samples += len(ids)
        first_step, self._step = self._step + 1, self._step + num_steps
        self._write(
            {
                "first_step": first_step,
                "step": self._step,
                "num_samples": self._num_samples,
                "hash": self._hash,
                "num_replicas": self._plan.num_replicas,
            }
        )

    def progress(self, validation_loss: float | None) -> Progress:
        """Where the run stands, for a checkpoint."""
        return Progress(self._step, self._num_samples, self._hash, validation_loss)

    def _write(self, line: dict[str, int | str]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def rolled(rolling_hash: str, sample_ids: np.ndarray) -> str:
    """The hash after one more update, whose ids are in the order of the global batch; it begins as the empty string."""
    ids = np.ascontiguousarray(sample_ids, dtype="<i8")
    return hashlib.sha256(bytes.fromhex(rolling_hash) + ids.tobytes()).hexdigest()
