"""The ledger: what the run really consumed, as a rolling hash over sample ids that were read off the batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import BatchPlan
from trainer.divergence import Divergence
from trainer.files import write_atomically
from trainer.line_file import LineFile
from trainer.progress import Progress, Rollback

logger = logging.getLogger(__name__)


class Ledger:
    """After each update the hash becomes sha256(hash before, the update's sample ids in the order of the global batch).

    So it does not depend on how many replicas there are, nor on where a run was stopped. `path` is None on processes
    other than the chief: they keep count and write nothing. `circumstances`, what `verify` must know to compute the same
    samples again, goes into the line about this start.
    """

    def __init__(
        self, path: Path | None, progress: Progress, plan: BatchPlan, circumstances: Mapping[str, Any] | None = None
    ) -> None:
        self._plan = plan
        self.progress = progress
        self._file = None
        if path is not None:
            has_history = _cut_back(path, progress)
            self._file = LineFile(path)
            start = {"event": "start", **self._place(), "global_batch_size": plan.global_batch_size, **(circumstances or {})}
            if not has_history:
                # All that is known of what came before is in the checkpoint.
                start["rollbacks"] = [asdict(rollback) for rollback in progress.rollbacks]
                if progress.step:
                    logger.warning("%s does not reach back beyond step %d: it begins there", path, progress.step)
            self._file.append(start)

    def consume(self, sample_ids: np.ndarray, is_skipped: np.ndarray) -> None:
        """Takes the ids of some updates and writes a line: int64 [processes, updates, local replicas, micro-batches, rows],
        and which of the updates were skipped: bool [updates]."""
        before, num_steps = self.progress, sample_ids.shape[1]
        rolling_hash, num_samples = before.ledger_hash, before.num_samples
        for ids in np.moveaxis(sample_ids, 1, 0).reshape(num_steps, -1):
            rolling_hash = rolled(rolling_hash, ids)
            num_samples += len(ids)
        self.progress = replace(
            before, step=before.step + num_steps, num_samples=num_samples, ledger_hash=rolling_hash, validation={}
        )
        line = {"first_step": before.step + 1, "first_sample": before.num_samples, **self._place()}
        skipped = [before.step + 1 + index for index in np.flatnonzero(is_skipped).tolist()]
        self._write(line | {"skipped_updates": skipped} if skipped else line)

    def roll_back(self, target: Progress, divergence: Divergence) -> Rollback:
        """Goes back to `target`, and over the samples from there to those of the update that diverged."""
        beyond = (self.progress.step - divergence.step) * self._plan.global_batch_size
        first_sample = target.num_samples
        num_samples = self.progress.num_samples - beyond - first_sample
        rollback = Rollback(divergence.step, target.step, first_sample, num_samples, divergence.reason)
        self.progress = replace(
            target,
            num_samples=first_sample + num_samples,
            ledger_hash=stepped_over(target.ledger_hash, first_sample, num_samples),
            rollbacks=(*self.progress.rollbacks, rollback),
            privacy=self.progress.privacy,
        )
        self._write({"event": "rollback", "rollback": asdict(rollback), **self._place()})
        return rollback

    def sync(self) -> None:
        """Waits until the ledger is on disk: no checkpoint shall know more than it."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _place(self) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "num_samples": self.progress.num_samples,
            "hash": self.progress.ledger_hash,
            "num_replicas": self._plan.num_replicas,
        }

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.append(line)


def rolled(rolling_hash: str, sample_ids: np.ndarray) -> str:
    """The hash after one more update, whose ids are in the order of the global batch; it begins as the empty string."""
    ids = np.ascontiguousarray(sample_ids, dtype="<i8")
    return hashlib.sha256(bytes.fromhex(rolling_hash) + ids.tobytes()).hexdigest()


def stepped_over(rolling_hash: str, first_sample: int, num_samples: int) -> str:
    """The hash after so many positions of the order were stepped over."""
    marker = np.array([first_sample, num_samples], "<i8").tobytes()
    return hashlib.sha256(bytes.fromhex(rolling_hash) + b"stepped over" + marker).hexdigest()


def _cut_back(path: Path, progress: Progress) -> bool:
    """Takes back what the ledger tells of steps that were lost: all after the last line that stands where the run now
    stands. Whether there is one, or the run is at its very beginning."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = 0
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except ValueError:  # a kill left it unfinished
            break
        if (content["step"], content["num_samples"], content["hash"]) == (
            progress.step,
            progress.num_samples,
            progress.ledger_hash,
        ):
            kept = number
    if kept < len(lines):
        write_atomically(path, b"".join(lines[:kept]))
    return kept > 0 or progress.is_beginning
