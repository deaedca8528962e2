"""Measures one and two Horovod ranks, one core each, and prints what the planner predicts over what was measured.

    python benchmarks/planner.py [--steps 100]

What the prediction is made from is measured apart from what is predicted: the speed of a core by a run of a model with a
third of the layers, which has products of the same sizes; bandwidth and latency by all-reduces of two sizes, the memory's
bandwidth by copying. Needs Horovod and two idle cores.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainer.check import find_sizes, tokens_of_row
from trainer.config_io import load_config
from trainer.planning.assumptions import assume
from trainer.planning.cost import StepTime
from trainer.planning.plan import make_plan
from trainer.planning.request import Request
from trainer.tasks.parameters import run_flops_per_token

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
CALIBRATION = ("model.num_layers=2", "model.width=256", "model.num_heads=4", "data.sequence_length=128")
PREDICTED = ("model.num_layers=6", "model.width=256", "model.num_heads=4", "data.sequence_length=128")
ROWS_OF_A_RANK = 8
SMALL, LARGE = 4_096, 32 * 2**20  # bytes of an all-reduce
REPEATS = 20


@dataclass(frozen=True)
class Machine:
    """FLOP/s of a core in training; bytes per second and seconds of a message between ranks; bytes per second of memory."""

    flops: float
    bandwidth: float
    latency: float
    memory_bandwidth: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of each run; the first third does not count")
    parser.add_argument("--all-reduce", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.all_reduce:
        time_all_reduces()
        return
    with tempfile.TemporaryDirectory(prefix="drumline-planner-") as name:
        compare(Path(name), arguments.steps)


def compare(folder: Path, steps: int) -> None:
    (folder / "topics.txt").write_text("\n".join(pydoc_data.topics.topics.values()))
    given = common(folder, steps)
    drumline("prepare", *given, *PREDICTED)
    machine = measure_machine(folder, steps)
    print(f"a core reaches {machine.flops / 1e9:.1f} GFLOP/s in training, copies {machine.memory_bandwidth / 1e9:.1f} GB/s")
    print(f"between ranks {machine.bandwidth / 1e9:.2f} GB/s, {1e6 * machine.latency:.0f} us a message")
    print("ranks  predicted  measured  predicted / measured")
    for num_ranks in (1, 2):
        measured = train(folder, "predicted", PREDICTED, num_ranks, steps)
        predicted = predict(given, machine, PREDICTED, num_ranks).total
        print(f"{num_ranks:5}  {1e3 * predicted:6.1f} ms  {1e3 * measured:5.1f} ms  {predicted / measured:.3f}")


def common(folder: Path, steps: int) -> list[str]:
    return [
        str(ROOT / "configs/demo.yaml"),
        f"run.directory={folder / 'runs'}",
        f"data.store={folder / 'store'}",
        f"data.train=[{{path: {folder / 'topics.txt'}}}]",
        "data.validation=[]",
        "model.dropout=0.0",
        f"train.steps={steps}",
        "optimizer.warmup_steps=0",
        "evaluation.every=null",
        f"checkpoint.every={steps}",
    ]


def train(folder: Path, name: str, shape: tuple[str, ...], num_ranks: int, steps: int) -> float:
    """A run of its own; the median of its seconds a step."""
    run = f"{name}-{num_ranks}"
    given = [*common(folder, steps), *shape, f"train.global_batch_size={ROWS_OF_A_RANK * num_ranks}", f"run.name={run}"]
    if num_ranks == 1:
        subprocess.run(["taskset", "-c", "0", BIN / "drumline", "-q", "train", *given], check=True, stdout=sys.stderr)
    else:
        drumline("launch", "horovod", *given, "--workers", f"{num_ranks}")
    lines = [json.loads(line) for line in (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["step_seconds"] for line in lines if line["step"] > steps // 3)


def measure_machine(folder: Path, steps: int) -> Machine:
    config = load_config(ROOT / "configs/demo.yaml", [*common(folder, steps)[1:], *CALIBRATION])
    flops = run_flops_per_token(config, find_sizes(config)[0]) * tokens_of_row(config) * ROWS_OF_A_RANK
    command = [BIN / "horovodrun", "-np", "2", sys.executable, __file__, "--all-reduce"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    small, large = json.loads(printed[printed.index("{") : printed.index("}") + 1]).values()
    # Of two ranks each sends two messages of half the bytes: small ones are latency alone.
    machine = Machine(
        flops=flops,
        bandwidth=(LARGE - SMALL) / (large - small),
        latency=small / 2,
        memory_bandwidth=copying_speed(),
    )
    # What a step of the small model takes beside its products, by the planner's own arithmetic, is not their speed.
    beside = predict([str(ROOT / "configs/demo.yaml"), *common(folder, steps)[1:]], machine, CALIBRATION, 1)
    return replace(machine, flops=flops / (train(folder, "calibration", CALIBRATION, 1, steps) - beside.update))


def time_all_reduces() -> None:
    """Run as one of two ranks; the first prints the median seconds of a small and of a large all-reduce."""
    import tensorflow as tf

    from trainer.config import DistributionConfig
    from trainer.distribution import connect

    distribution = connect(DistributionConfig(backend="horovod"))
    reduce = tf.function(lambda values: distribution.all_reduce([values])[0], autograph=False)
    seconds = {}
    for num_bytes in (SMALL, LARGE):
        values = tf.ones(num_bytes // 4)
        reduce(values)
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            reduce(values).numpy()
            times.append(time.perf_counter() - began)
        seconds[num_bytes] = statistics.median(times)
    if distribution.is_chief:
        print(json.dumps(seconds), flush=True)
    distribution.close()


def copying_speed() -> float:
    """Bytes per second that are read and written by copying 64 MiB."""
    source = np.ones(2**24, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - began)
    return 2 * source.nbytes / statistics.median(times)


def predict(given: list[str], machine: Machine, shape: tuple[str, ...], num_ranks: int) -> StepTime:
    config = load_config(Path(given[0]), [*given[1:], *shape, f"train.global_batch_size={ROWS_OF_A_RANK * num_ranks}"])
    request = Request(
        accelerator="cpu",
        num_nodes=1,
        devices_per_node=num_ranks,
        link_bandwidth=machine.bandwidth,
        link_latency=machine.latency,
        utilization=1.0,
        peak=machine.flops,
        memory=8e9,
        memory_bandwidth=machine.memory_bandwidth,
    )
    return make_plan(config, assume(request, config), find_sizes(config)[0]).chosen.time


def drumline(*arguments: str) -> None:
    subprocess.run([BIN / "drumline", "-q", *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
