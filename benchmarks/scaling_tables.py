"""Prints the planner's predictions beside published scaling figures: the tables of docs/scaling.md.

    python benchmarks/scaling_tables.py

Computation is taken from the published speed of one GPU; what is predicted is how much the all-reduce takes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config import Config
from trainer.models.parameters import flops_per_token
from trainer.planning.cost import Cluster, all_reduce
from trainer.planning.hardware import ACCELERATORS
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

# Of a step: the backward pass is twice the forward pass, and can hide what is reduced meanwhile.
BACKWARD = 2 / 3


def main() -> None:
    print(*horovod_2018(), "", *bert_on_a100(), "", *utilization_of_bert(), sep="\n")


@dataclass(frozen=True)
class Network:
    """Name, weights as keras.io/api/applications counts them, images per second on one P100 in batches of 64 (ResNet-101:
    a 16th of 16 GPUs), and the efficiency on 512 GPUs as docs/benchmarks.rst of Horovod has it."""

    name: str
    num_weights: int
    images_per_second: float
    efficiency: float


NETWORKS = (
    Network("Inception V3", 23_851_784, 142.0, 0.90),
    Network("ResNet-101", 44_707_176, 1656.82 / 16, 0.90),
    Network("VGG-16", 138_357_544, 154.0, 0.68),
)
BATCH = 64
# 128 servers of 4 GPUs at 25 Gb/s; within a server PCIe 3.0 x16.
SERVERS = Cluster(
    num_nodes=128,
    devices_per_node=4,
    peak=1.0,
    utilization=1.0,
    memory_bandwidth=1.0,
    link_bandwidth=16e9,
    link_latency=5.7e-6,
    bandwidth=25e9 / 8,
    latency=14e-6,
)


def horovod_2018() -> Iterator[str]:
    yield from header("network", "weights", "step of one GPU", "all-reduce", "published", "predicted", "if hidden")
    for each in NETWORKS:
        compute, reduction = BATCH / each.images_per_second, all_reduce(4 * each.num_weights, SERVERS)
        cells = [each.name, f"{each.num_weights:,}", milliseconds(compute), milliseconds(reduction), f"{each.efficiency:.0%}"]
        yield row(*cells, *efficiencies(compute, reduction))


# GPUs and sequences a second in mixed precision, of length 128 and 512, one GPU first; and sequences of an update.
BERT = {
    128: (79_872, {1: 485.59, 8: 3803.82, 16: 7551.37, 64: 29711.11, 256: 110280.73}),
    512: (30_720, {1: 96.52, 8: 749.73, 16: 1491.87, 64: 5870.83, 256: 22506.23}),
}
# The same of one GPU in TF32, of length 128.
BERT_TF32 = 282.98
# Eight adapters of 200 Gb/s in a DGX A100.
DGX_BANDWIDTH = 8 * 200e9 / 8


def bert_large(length: int) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "bert-large"},
            "task": "masked_language_modeling",
            "data": {
                "store": "none",
                "train": [{"path": "none"}],
                "sequence_length": length,
                "tokenizer": {"kind": "wordpiece", "vocabulary_size": 30_528},
            },
            "model": {"family": "bert", "num_layers": 24, "num_heads": 16, "width": 1024, "max_positions": 512},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1, "global_batch_size": 1},
        }
    )


def bert_on_a100() -> Iterator[str]:
    yield from header("length", "GPUs", "sequences/s", "update", "all-reduce", "published", "predicted", "not explained")
    for length, (batch, speeds) in BERT.items():
        weights = run_parameters(bert_large(length), Sizes(30_528))
        num_bytes = 2 * sum(each.num_elements for each in weights.values())
        for num_gpus, speed in speeds.items():
            compute, reduction = batch / num_gpus / speeds[1], all_reduce(num_bytes, dgx_a100(num_gpus))
            unexplained = batch / speed - compute - reduction
            predicted, _ = efficiencies(compute, reduction)
            cells = [f"{length}", f"{num_gpus}", f"{speed:,.0f}", milliseconds(batch / speed), milliseconds(reduction)]
            yield row(*cells, f"{speed / num_gpus / speeds[1]:.1%}", predicted, milliseconds(unexplained))


def dgx_a100(num_gpus: int) -> Cluster:
    return Cluster(
        num_nodes=max(1, num_gpus // 8),
        devices_per_node=min(8, num_gpus),
        peak=1.0,
        utilization=1.0,
        memory_bandwidth=1.0,
        link_bandwidth=ACCELERATORS["a100-80gb"].link_bandwidth,
        link_latency=3.4e-6,
        bandwidth=DGX_BANDWIDTH,
        latency=14e-6,
    )


def utilization_of_bert() -> Iterator[str]:
    yield from header("precision", "sequences/s", "model FLOPs of a sequence", "peak", "utilization")
    # Without the scores over the vocabulary, which NVIDIA computes for at most 20 of the 128 tokens: below 2% of it.
    model = bert_large(128).model
    flops = 128 * flops_per_token(model, 30_528, 128, scores_tokens=False)
    known = ACCELERATORS["a100-80gb"]
    for name, speed, peak in (("float16", BERT[128][1][1], known.half), ("TF32", BERT_TF32, known.single)):
        yield row(name, f"{speed:,.2f}", f"{flops:.4g}", f"{peak / 1e12:,.0f} TFLOP/s", f"{speed * flops / peak:.2f}")


def efficiencies(compute: float, reduction: float) -> tuple[str, str]:
    """With nothing hidden, and with as much hidden as the backward pass can."""
    left = max(0.0, reduction - BACKWARD * compute)
    return f"{compute / (compute + reduction):.1%}", f"{compute / (compute + left):.1%}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms"


def header(*names: str) -> Iterator[str]:
    yield row(*names)
    yield "|" + "---|" * len(names)


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
