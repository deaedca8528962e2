"""Counts the bytes that a Horovod rank sends for an update, over what a ring needs: 2(N-1)/N times the gradients' bytes.

    python benchmarks/wire_bytes.py [--rounds 3] [--rows FILE] [--shape 4,256,4,64,1,8192] [--small]

Two ranks are alone in a network of their own (`unshare --net`, which needs root), and what is counted is all that its loopback
interface has sent (/proc/net/dev): headers, acknowledgements and Horovod's own messages included. The ranks are those of one
machine, which would send nothing, so `distribution.shared_memory` is off. The embedding is tied: it counts once. The batch of
the shape is the rows of one micro-batch of one rank.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rows import Row, at_most, report
from shaped_run import shape_of
from two_ranks import NUM_RANKS, config_of, on_two_ranks, trainer_of

UPDATES_PER_ROUND = 8
# Name: micro-batches of an update, what is sent, bar.
VARIANTS = {
    "accumulation 1": (1, "float32", 1.02),
    "accumulation 16": (16, "float32", 1.02),
    "accumulation 1, float16 wire": (1, "float16", 0.52),
    "accumulation 16, float16 wire": (16, "float16", 0.52),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="the file that the figures are added to")
    parser.add_argument("--shape", help="layers, width, heads, length, batch, vocabulary", default="4,256,4,64,1,8192")
    parser.add_argument("--small", action="store_true", help="a shape so small that Horovod's own messages weigh")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = "2,128,2,16,1,4096" if arguments.small else arguments.shape
    if arguments.result:
        count_on_rank(shape, arguments.rounds, arguments.result)
    else:
        given = ["--shape", shape, "--rounds", str(arguments.rounds)]
        counted = on_two_ranks(__file__, given, alone_in_network=True)
        report(rows_of(counted, f"shape {shape}, two ranks"), arguments.rows)


def count_on_rank(shape_text: str, rounds: int, result: Path) -> None:
    from trainer.distribution import connect

    shape = shape_of(shape_text)
    results: dict[str, Any] = {}
    distribution = connect(config_of(shape, distribution={"shared_memory": False}).distribution)
    for name, (num_micro_batches, wire_precision, _) in VARIANTS.items():
        config = config_of(
            shape,
            num_micro_batches=num_micro_batches,
            model={"tied_output": True},
            distribution={"wire_precision": wire_precision},
        )
        state, take_steps = trainer_of(config, shape, distribution)
        losses = take_steps(2)
        sent = []
        for _ in range(rounds):
            before = bytes_sent()
            losses += take_steps(UPDATES_PER_ROUND)
            sent.append((bytes_sent() - before) / UPDATES_PER_ROUND / NUM_RANKS)
        gradient_bytes = 4 * sum(int(weight.shape.num_elements()) for weight in state.weights.values())
        results[name] = {"sent": sent, "losses": losses, "gradient_bytes": gradient_bytes}
    if distribution.is_chief:
        result.write_text(json.dumps(results))
    distribution.close()


def bytes_sent() -> int:
    """All that the loopback interface of this network has sent."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])


def rows_of(counted: dict[str, Any], note: str) -> list[Row]:
    needed_of_gradient = 2 * (NUM_RANKS - 1) / NUM_RANKS
    rows = []
    for name, (_, _, bar) in VARIANTS.items():
        needed = needed_of_gradient * counted[name]["gradient_bytes"]
        sent = counted[name]["sent"]
        figures = f"{note}; {sorted(sent)[len(sent) // 2]:,.0f} over {needed:,.0f} bytes"
        rows.append(at_most(6, f"bytes sent for an update, {name}", bar, [each / needed for each in sent], note=figures))
    for accumulation in ("accumulation 1", "accumulation 16"):
        wide, narrow = (counted[name]["losses"] for name in (accumulation, f"{accumulation}, float16 wire"))
        apart = max(abs(a - b) / b for a, b in zip(narrow, wide, strict=True))
        what = f"largest difference of the loss with a float16 wire, in percent, {accumulation}"
        curve = f"{note}; {len(wide)} steps, from {wide[0]:.3f} to {wide[-1]:.3f}"
        rows.append(Row(6, what, 100 * apart, 1.0, True, note=curve))
    return rows


if __name__ == "__main__":
    main()
