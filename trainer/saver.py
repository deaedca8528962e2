"""Saves checkpoints while training goes on, and counts the saves that fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoint import Checkpoint, list_checkpoints, prune_checkpoints, write_checkpoint
from trainer.config import CheckpointConfig
from trainer.encryption.files import PLAIN, Encryption
from trainer.errors import CheckpointError

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Writes one checkpoint at a time to `directory` and deletes those that `policy` does not keep.

    failures:        how many saves in a row the file system has refused; each was warned of when it happened
    blocked_seconds: how long callers of `save`, `wait` and `close` were held up in all

    What goes wrong in the background and is not the file system's doing is raised by the next call of any method.
    """

    def __init__(self, directory: Path, policy: CheckpointConfig, encryption: Encryption = PLAIN) -> None:
        self._directory = directory
        self._policy = policy
        self._encryption = encryption
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._last_error = ""
        self._began = 0.0
        self.failures = 0
        self.blocked_seconds = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, checkpoint: Checkpoint, context: Mapping[str, Any]) -> None:
        """Begins to save, when a save that is still under way has ended; where `policy.background` is false, also ends.

        The arrays must not change any more: no copy is made of them, and they are held until they are written.
        """
        began = time.perf_counter()
        try:
            if self.is_busy:
                logger.info("training waits: the save before is under way for %.1f s", began - self._began)
            self._join()
            # The caller may fill its own mappings with the next arrays while these are being written.
            checkpoint = Checkpoint(
                dict(checkpoint.weights), dict(checkpoint.optimizer), checkpoint.progress, dict(checkpoint.identity)
            )
            if not self._policy.background:
                self._save(checkpoint, context)
                return
            # Not a daemon: where the run ends with an error, Python waits for the save before it ends, too.
            self._thread = threading.Thread(target=self._save_in_thread, args=(checkpoint, context), name="checkpoint-saver")
            self._began = time.perf_counter()
            self._thread.start()
        finally:
            self.blocked_seconds += time.perf_counter() - began

    def wait(self, at_most_seconds: float | None = None) -> None:
        """Until no save is under way, or so long."""
        began = time.perf_counter()
        try:
            self._join(at_most_seconds)
        finally:
            self.blocked_seconds += time.perf_counter() - began

    def refuse_failing(self) -> None:
        """Raises CheckpointError where `policy.max_failures` saves in a row have failed."""
        self._raise_fault()
        if self.failures >= self._policy.max_failures:
            raise CheckpointError(
                f"{self._directory}: the last {self.failures} saves failed ({self._last_error}); {self._newest()}; "
                "put right what is wrong there, and start the run again: it goes on from that checkpoint"
            )

    def close(self) -> None:
        """Waits for the save that is under way."""
        self.wait()

    def _join(self, at_most_seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(at_most_seconds)
            if not self._thread.is_alive():
                self._thread = None
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None and not self.is_busy:
            fault, self._fault = self._fault, None
            raise fault

    def _save_in_thread(self, checkpoint: Checkpoint, context: Mapping[str, Any]) -> None:
        try:
            self._save(checkpoint, context)
        except BaseException as fault:
            self._fault = fault

    def _save(self, checkpoint: Checkpoint, context: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        try:
            path = write_checkpoint(self._directory, checkpoint, context, self._encryption)
        except OSError as error:
            self._last_error = str(error)
            self.failures += 1
            logger.warning("could not save step %d: %s; %s; training goes on", checkpoint.progress.step, error, self._newest())
            return
        self.failures = 0
        logger.info("saved %s (%.1f s)", path, time.perf_counter() - began)
        try:
            prune_checkpoints(self._directory, self._policy)
        except OSError as error:
            logger.warning("%s: could not delete the checkpoints that need not be kept: %s", self._directory, error)

    def _newest(self) -> str:
        try:
            good = [info.step for info in list_checkpoints(self._directory) if info.problem is None]
        except CheckpointError:
            return "the checkpoints before it cannot be read now, either"
        return f"the newest checkpoint is that of step {good[-1]}" if good else "there is no other checkpoint"
