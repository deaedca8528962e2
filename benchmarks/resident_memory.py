"""Measures the resident bytes of a `drumline train` run over what it needs by arithmetic.

    python benchmarks/resident_memory.py [--rounds 3] [--rows FILE] [--shape 12,768,12,512,2,50257] [--small]

Each round is a run of its own from beginning to end, as a user starts it, logging and the checkpoint of its last step
included, in float32. Its peak is the operating system's (`ru_maxrss`), over weights, gradients, the optimizer's moments and
activations as `drumline check` estimates them. The note has also what is left without what a process takes that has imported
TensorFlow alone, and the peak that the last logged step had, before the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rows import at_most, report

from trainer.check import estimate_memory, find_sizes
from trainer.config import Config, plan_batches
from trainer.config_io import load_config
from trainer.tasks.parameters import run_parameters

ROOT = Path(__file__).resolve().parents[1]
DRUMLINE = [sys.executable, "-m", "trainer", "-q"]
STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="the file that the figures are added to")
    parser.add_argument("--shape", help="layers, width, heads, length, batch, vocabulary", default="12,768,12,512,2,50257")
    parser.add_argument("--small", action="store_true", help="a shape that is done in seconds, whose figure says nothing")
    arguments = parser.parse_args()
    shape = "2,32,2,32,2,509" if arguments.small else arguments.shape
    with tempfile.TemporaryDirectory(prefix="drumline-memory-") as name:
        measure(Path(name), shape, arguments.rounds, arguments.rows)


def measure(folder: Path, shape: str, rounds: int, rows: Path | None) -> None:
    (folder / "topics.txt").write_text("\n".join(pydoc_data.topics.topics.values()))
    given = overrides(folder, shape)
    subprocess.run([*DRUMLINE, "prepare", str(ROOT / "configs/demo.yaml"), *given], check=True, stdout=sys.stderr)
    needed = arithmetic(load_config(ROOT / "configs/demo.yaml", given))
    peaks, logged, idle = [], [], []
    for number in range(rounds):
        run = f"run-{number}"
        command = [*DRUMLINE, "train", str(ROOT / "configs/demo.yaml"), *given, f"run.name={run}"]
        peaks.append(peak_bytes(command))
        lines = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        logged.append(max(json.loads(line).get("peak_memory_bytes", 0) for line in lines))
        idle.append(peak_bytes([sys.executable, "-c", "import tensorflow"]))
    without = statistics.median((peak - own) / needed for peak, own in zip(peaks, idle, strict=True))
    peak, before_saving = statistics.median(peaks), statistics.median(logged) / needed
    note = (
        f"shape {shape}, float32; {peak / 1e6:,.0f} MB over {needed / 1e6:,.0f} MB; {without:.3f} without the "
        f"{statistics.median(idle) / 1e6:,.0f} MB of TensorFlow; {before_saving:.3f} before the checkpoint"
    )
    report([at_most(14, "resident bytes over arithmetic", 1.3, [peak / needed for peak in peaks], note=note)], rows)


def overrides(folder: Path, shape: str) -> list[str]:
    """The demo's text by characters; the table has as many rows as the shape's vocabulary."""
    num_layers, width, num_heads, length, batch, vocabulary = shape.split(",")
    return [
        f"run.directory={folder / 'runs'}",
        f"data.store={folder / 'store'}",
        f"data.train=[{{path: {folder / 'topics.txt'}}}]",
        "data.validation=[]",
        f"data.sequence_length={length}",
        "data.tokenizer={kind: character}",
        f"model={{num_layers: {num_layers}, num_heads: {num_heads}, width: {width}, vocabulary_size: {vocabulary}}}",
        "optimizer={learning_rate: 3.0e-4, schedule: constant}",
        f"train={{steps: {STEPS}, global_batch_size: {batch}, steps_per_loop: 2}}",
        "distribution.backend=single",
        "evaluation.every=null",
        "logging.every=2",
    ]


def arithmetic(config: Config) -> int:
    """Bytes of weights, gradients, moments and activations."""
    sizes = find_sizes(config)[0]
    return estimate_memory(config, plan_batches(config.train, 1), run_parameters(config, sizes), sizes.vocabulary_size).total


def peak_bytes(command: Sequence[str]) -> int:
    """The most that was resident of a process that ended well."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return 1024 * usage.ru_maxrss


if __name__ == "__main__":
    main()
