"""Measures `train.shard_optimizer` against the same training without, on two Horovod ranks with a core each.

    python benchmarks/sharded_optimizer.py [--rounds 5] [--rows FILE] [--shape 6,384,6,256,4,8192] [--small]

Both ranks hold three states that step in turn: sharded, unsharded, and unsharded again, which is the control. All see the
same batches, so the losses of each step can be compared. The batch of the shape is the rows of one rank.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rows import Row, at_most, paired, report
from shaped_run import SMALL_SHAPE, shape_of
from two_ranks import config_of, on_two_ranks, trainer_of

STEPS_PER_ROUND = 4
SHARDED, WHOLE, CONTROL = CONTESTANTS = ("sharded", "unsharded", "unsharded again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=Path, help="the file that the figures are added to")
    parser.add_argument("--shape", help="layers, width, heads, length, batch, vocabulary", default="6,384,6,256,4,8192")
    parser.add_argument("--small", action="store_true", help="a shape that is done in seconds, whose times say nothing")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SMALL_SHAPE if arguments.small else arguments.shape
    if arguments.result:
        measure_on_rank(shape, arguments.rounds, arguments.result)
    else:
        measured = on_two_ranks(__file__, ["--shape", shape, "--rounds", str(arguments.rounds)])
        report(rows_of(measured, f"shape {shape}, two ranks"), arguments.rows)


def measure_on_rank(shape_text: str, rounds: int, result: Path) -> None:
    import numpy as np

    from trainer.distribution import connect

    shape = shape_of(shape_text)
    configs = {name: config_of(shape, train={"shard_optimizer": name == SHARDED}) for name in CONTESTANTS}
    distribution = connect(configs[WHOLE].distribution)
    states, steppers = {}, {}
    for name, config in configs.items():
        states[name], steppers[name] = trainer_of(config, shape, distribution)
    losses = {name: steppers[name](2) for name in CONTESTANTS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(rounds):
        for name in CONTESTANTS if number % 2 == 0 else reversed(CONTESTANTS):
            losses[name] += steppers[name](1)  # Horovod agrees anew on the order of what it reduces
            began = time.perf_counter()
            losses[name] += steppers[name](STEPS_PER_ROUND)
            seconds[name].append((time.perf_counter() - began) / STEPS_PER_ROUND)
    held = {
        name: sum(4 * int(variable.shape.num_elements()) for slot in state.slots.values() for variable in slot.values())
        for name, state in states.items()
    }
    # The rank that keeps most, and the time of the slower.
    others = np.array([[*held.values()]]).repeat(distribution.num_processes, 0)
    others[np.arange(distribution.num_processes) != distribution.rank] = 0
    every = distribution.sum_over_processes(others)
    if distribution.is_chief:
        held = dict(zip(CONTESTANTS, (int(most) for most in every.max(0)), strict=True))
        result.write_text(json.dumps({"bytes": held, "seconds": seconds, "losses": losses}))
    distribution.close()


def rows_of(measured: dict[str, Any], note: str) -> list[Row]:
    held, seconds, losses = measured["bytes"], measured["seconds"], measured["losses"]
    times = ", ".join(f"{name} {1e3 * statistics.median(seconds[name]):.0f} ms" for name in CONTESTANTS)
    ratios, control = (paired(seconds[name], seconds[WHOLE]) for name in (SHARDED, CONTROL))
    apart, apart_control = (
        max(abs(a - b) / abs(b) for a, b in zip(losses[name], losses[WHOLE], strict=True)) for name in (SHARDED, CONTROL)
    )
    states = f"{held[SHARDED]:,} over {held[WHOLE]:,} bytes"
    return [
        # Half, and what a weight of an odd number of elements is padded by.
        Row(9, "optimizer bytes per rank over unsharded", held[SHARDED] / held[WHOLE], 0.5001, True, note=f"{note}; {states}"),
        at_most(9, "step time over unsharded", 1.05, ratios, statistics.median(control), f"{note}; {times}"),
        Row(
            9,
            "largest relative difference of the loss, in millionths",
            1e6 * apart,
            1.0,
            True,
            control=1e6 * apart_control,
            note=f"{note}; {len(losses[WHOLE])} steps",
        ),
    ]


if __name__ == "__main__":
    main()
