"""`drumline verify`: computes again which samples a run was to consume, and compares with what its ledger says it did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.checkpoint import list_checkpoints, newest_good, read_state
from trainer.config import Config
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.order import SampleOrder
from trainer.data.poisson_order import PoissonOrder
from trainer.encryption.files import Encryption
from trainer.errors import CheckpointError, DataError
from trainer.ledger import rolled, stepped_over
from trainer.progress import Progress, Rollback
from trainer.run_directory import RunDirectory, open_run


@dataclass
class Account:
    """What a ledger that is in order tells of its run."""

    step: int = 0
    num_samples: int = 0
    num_replicas: list[int] = field(default_factory=list)  # by start
    rollbacks: list[Rollback] = field(default_factory=list)
    skipped_updates: list[int] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        over = sum(rollback.num_samples for rollback in self.rollbacks)
        sizes = ", ".join(str(size) for size in self.num_replicas)
        return (
            f"{self.step} steps, positions 0 to {self.num_samples} of the order, every one consumed as planned; "
            f"{len(self.num_replicas)} starts on {sizes} replicas; {len(self.rollbacks)} rollbacks over {over} samples; "
            f"{len(self.skipped_updates)} skipped updates; {len(self.checkpoints)} checkpoints agree"
        )


def verify_run(path: Path) -> Account:
    """Compares each line of the ledger with the plan, and the checkpoints with the ledger.

    Raises CheckpointError at the first that differs, with its line; DataError where the store is no longer the one that
    the run read.
    """
    run, config = open_run(path)
    if not run.ledger.is_file():
        raise CheckpointError(f"{run.ledger}: no such file; the run has not begun")
    verifier = _Verifier(run, config, open_corpus(config))
    lines = run.ledger.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break  # a line that is being written, or that a kill cut off: the next start takes it back
            raise CheckpointError(f"{run.ledger}:{number}: cannot be read ({error})") from error
        verifier.read(number, content)
    verifier.compare_checkpoints()
    return verifier.account


class _Verifier:
    """Goes through a ledger with the place at which the run should be."""

    def __init__(self, run: RunDirectory, config: Config, corpus: Corpus) -> None:
        self.account = Account()
        self._path, self._checkpoints = run.ledger, run.checkpoints
        self._config, self._corpus = config, corpus
        self._encryption = Encryption.of(config.security)
        self._order: SampleOrder | PoissonOrder = corpus.order
        self._batch_size = config.train.global_batch_size
        self._places = {0: Progress()}  # of the run as it now stands, by step
        self._left: dict[int, Progress] = {}  # of checkpoints that the run went back to, as they were saved

    def read(self, number: int, line: Mapping[str, Any]) -> None:
        where = f"{self._path}:{number}"
        if line.get("event") == "start":
            self._read_start(where, number, line)
        elif line.get("event") == "rollback":
            self._read_rollback(where, line)
        else:
            self._read_updates(where, line)
        place = self._place
        self._expect(where, "step", line["step"], place.step)
        self._expect(where, "num_samples", line["num_samples"], place.num_samples)
        self._expect(where, "hash", line["hash"], place.ledger_hash)
        self.account.step, self.account.num_samples = place.step, place.num_samples

    def compare_checkpoints(self) -> None:
        """Those that can be read at all; `drumline checkpoints verify` looks into each."""
        for info in list_checkpoints(self._checkpoints):
            if info.problem is not None:
                continue
            saved, _ = read_state(info.path, self._encryption)
            planned = self._places.get(saved.step)
            if planned is None:
                raise CheckpointError(f"{info.path}: the ledger knows no step {saved.step}")
            left = self._left.get(saved.step)
            if left is not None and saved.ledger_hash == left.ledger_hash:
                planned = left
            for name in ("num_samples", "ledger_hash"):
                self._expect(str(info.path), name, getattr(saved, name), getattr(planned, name))
            self.account.checkpoints.append(saved.step)

    @property
    def _place(self) -> Progress:
        return self._places[max(self._places)]

    def _read_start(self, where: str, number: int, line: Mapping[str, Any]) -> None:
        if line["data"] != self._corpus.order_fingerprint:
            raise DataError(
                f"{where}: was begun with other training data or another data.sequence_length; verify it with that store"
            )
        self.account.num_replicas.append(line["num_replicas"])
        self._batch_size, self._order = line["global_batch_size"], self._order_of(line)
        if number == 1 and line["step"]:
            # The ledger begins in the middle of the run: what came before is computed from the rollbacks it tells of.
            rollbacks = [Rollback(**rollback) for rollback in line["rollbacks"]]
            self._places = {line["step"]: self._replay(line["step"], rollbacks)}
            self.account.rollbacks = rollbacks
        elif line["step"] not in self._places:
            raise CheckpointError(f"{where}: begins at step {line['step']}, where nothing ended before")
        self._forget_after(line["step"])

    def _order_of(self, line: Mapping[str, Any]) -> SampleOrder | PoissonOrder:
        """Of a private run it follows from what is in its checkpoints alone. Raises CheckpointError where there is none."""
        order = self._corpus.order
        if self._config.privacy is None:
            return order.with_seed(line["seed"])
        newest = newest_good(self._checkpoints)
        record = None if newest is None else read_state(newest, self._encryption)[0].privacy
        if record is None:
            raise CheckpointError(f"{self._checkpoints}: no checkpoint has what the samples of a private run follow from")
        return PoissonOrder.of(order, record, line["global_batch_size"])

    def _read_updates(self, where: str, line: Mapping[str, Any]) -> None:
        place = self._place
        self._expect(where, "first_step", line["first_step"], place.step + 1)
        self._expect(where, "first_sample", line["first_sample"], place.num_samples)
        self._places[line["step"]] = self._consume(place, line["step"] - place.step)
        self.account.skipped_updates += line.get("skipped_updates", [])

    def _read_rollback(self, where: str, line: Mapping[str, Any]) -> None:
        rollback = Rollback(**line["rollback"])
        target = self._places.get(rollback.to_step)
        if target is None:
            raise CheckpointError(f"{where}: goes back to step {rollback.to_step}, where nothing ended before")
        self._expect(where, "first_sample", rollback.first_sample, target.num_samples)
        self._forget_after(rollback.to_step)
        self._left[rollback.to_step] = target
        self._places[rollback.to_step] = _step_over(target, rollback)
        self.account.rollbacks.append(rollback)

    def _replay(self, step: int, rollbacks: Sequence[Rollback]) -> Progress:
        """The place of a run after `step` updates, from its beginning; a later rollback may have undone an earlier one."""
        place = Progress()
        for index, rollback in enumerate(rollbacks):
            if all(later.to_step > rollback.to_step for later in rollbacks[index + 1 :]):
                place = _step_over(self._consume(place, rollback.to_step - place.step), rollback)
        return self._consume(place, step - place.step)

    def _consume(self, place: Progress, num_steps: int) -> Progress:
        rolling_hash, position = place.ledger_hash, place.num_samples
        for _ in range(num_steps):
            rolling_hash = rolled(rolling_hash, self._order.sample_ids(position, self._batch_size))
            position += self._batch_size
        return replace(place, step=place.step + num_steps, num_samples=position, ledger_hash=rolling_hash)

    def _forget_after(self, step: int) -> None:
        self._places = {known: place for known, place in self._places.items() if known <= step}
        self._left = {known: place for known, place in self._left.items() if known <= step}
        self.account.skipped_updates = [each for each in self.account.skipped_updates if each <= step]

    @staticmethod
    def _expect(where: str, name: str, got: object, expected: object) -> None:
        if got != expected:
            raise CheckpointError(f"{where}: {name} is {got!r}, and by the plan it must be {expected!r}")


def _step_over(place: Progress, rollback: Rollback) -> Progress:
    return replace(
        place,
        num_samples=rollback.first_sample + rollback.num_samples,
        ledger_hash=stepped_over(place.ledger_hash, rollback.first_sample, rollback.num_samples),
    )
