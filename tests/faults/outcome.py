"""What a run has left on disk, and whether it is that of another run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.training import json_lines, ledger_hash, train_losses
from trainer import cli
from trainer.checkpoint import list_checkpoints, read_checkpoint, verify_checkpoint


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, without a line that is still being written."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    steps = [int(match[1]) for line in lines if (match := re.match(rb'\{"step": (\d+),', line))]
    return max(steps, default=0)


def num_starts(run: Path) -> int:
    history = run / "run.json"
    return len(json.loads(history.read_text())["starts"]) if history.exists() else 0


def saved_steps(run: Path) -> list[int]:
    return [info.step for info in list_checkpoints(run / "checkpoints")]


def good_steps(run: Path) -> set[int]:
    """The steps of all checkpoints; each of them must be good."""
    infos = list_checkpoints(run / "checkpoints")
    problems = {info.path.name: info.problem or verify_checkpoint(info.path) for info in infos}
    assert not any(problems.values()), f"{run}: {problems}"
    return {info.step for info in infos}


def half_done_saves(run: Path) -> set[tuple[str, int]]:
    """What is being written at this moment, or was when the run was killed: names and inodes. A start that was
    killed leaves its own behind until the next save."""
    found = set()
    for path in (run / "checkpoints").glob(".step-*.partial"):
        try:
            found.add((path.name, path.stat().st_ino))
        except FileNotFoundError:  # it is whole now
            continue
    return found


def validation_losses(run: Path) -> dict[int, float]:
    lines = [line for line in json_lines(run / "metrics.jsonl") if line["split"] == "validation"]
    assert len({line["step"] for line in lines}) == len(lines), f"{run}: evaluations are logged twice"
    return {line["step"]: line["loss"] for line in lines}


def rollbacks(run: Path) -> list[dict[str, Any]]:
    """What the ledger tells of the times that a run went back."""
    return [line["rollback"] for line in json_lines(run / "ledger.jsonl") if line.get("event") == "rollback"]


def assert_ledger_in_order(run: Path) -> None:
    """By `drumline verify`, called in this process."""
    assert cli.main(["verify", str(run)]) == 0


def assert_same_run(run: Path, reference: Path) -> None:
    """Losses equal to the last bit, each step once; the same samples; the same weights and moments; a ledger in order."""
    assert train_losses(run) == train_losses(reference)
    assert list(train_losses(run)) == list(range(1, last_step(reference) + 1))
    assert validation_losses(run) == validation_losses(reference)
    assert ledger_hash(run) == ledger_hash(reference)
    ours, theirs = (read_checkpoint(path / "checkpoints" / f"step-{last_step(reference):08d}") for path in (run, reference))
    for ours_saved, theirs_saved in ((ours.weights, theirs.weights), (ours.optimizer, theirs.optimizer)):
        assert ours_saved.keys() == theirs_saved.keys()
        assert all(ours_saved[name].tobytes() == theirs_saved[name].tobytes() for name in ours_saved)
    assert_ledger_in_order(run)
