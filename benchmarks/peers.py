"""Measures `drumline train`, logging and all, against the same model trained by others, and against the matrix product.

    python benchmarks/peers.py [--rounds 3] [--peers ../shared/peers] [--precision float32 ...] [--shape 6,384,6,256,8,8192 ...]

In each round every contestant runs once, in turn, as a process of its own: the programs of the folder `--peers`, of which
each trains some steps and prints `tok/s=`, and `drumline train` twice, whose two runs are the control. Its tokens per
second are taken from one log entry to the next; those of the peers from their steps alone. Compared is with the peer that
was the fastest over all rounds. One that is slower in the first round than another of its kind by more than a tenth
(compiling can take minutes) takes part in no other.

Row 1 is over PyTorch and Hugging Face; row 2, at the first shape, model FLOP/s as the peers count them over those of a
product of 2048 by 2048; row 3, at the first shape, the step time over that of the TensorFlow step in tf_gpt.py.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from random_run import ROOT, drumline, environment, prepare_run, shape_of, tokens_per_second
from rows import Row, at_least, at_most, paired, report
from step_time import Shape

FIRST_SHAPE, GPT2_SHAPE, SMALL_SHAPE = "6,384,6,256,8,8192", "12,768,12,512,2,50257", "1,32,2,32,2,512"
PRECISIONS = ("float32", "bfloat16")
# Row 1's bars by shape and precision, row 2's by precision.
BARS = {
    (FIRST_SHAPE, "float32"): 1.25,
    (GPT2_SHAPE, "float32"): 1.35,
    (FIRST_SHAPE, "bfloat16"): 1.15,
    (GPT2_SHAPE, "bfloat16"): 1.5,
}
UTILIZATION_BARS = {"float32": 0.80, "bfloat16": 0.62}
STEP_TIME_BAR = 0.95
NUM_STEPS = 12  # of a peer, which leaves out its first three
FAR_BEHIND = 0.9
PROGRAMS = ("torch_gpt.py", "hf_gpt.py", "tf_gpt.py", "gemm_torch.py", "gemm_tf.py")
PACKAGES = ("torch", "transformers", "accelerate")


@dataclass(frozen=True)
class Peer:
    program: str
    mode: str

    @property
    def name(self) -> str:
        return f"{self.program.removesuffix('_gpt.py')} {self.mode}"

    @property
    def is_tensorflow(self) -> bool:
        return self.program == "tf_gpt.py"


@dataclass(frozen=True)
class Case:
    """What all contestants compute: `text` is the shape as the peers write it."""

    folder: Path
    text: str
    precision: str

    @property
    def shape(self) -> Shape:
        return shape_of(self.text)

    @property
    def is_first_shape(self) -> bool:
        return self.text != GPT2_SHAPE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=ROOT.parent / "shared/peers")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--shape", nargs="+", choices=(FIRST_SHAPE, GPT2_SHAPE), default=(FIRST_SHAPE, GPT2_SHAPE))
    parser.add_argument("--rows", type=Path, help="adds the rows to this file")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see whether it works")
    arguments = parser.parse_args()
    missing = [str(arguments.peers / name) for name in PROGRAMS if not (arguments.peers / name).exists()]
    missing += [f"the package {name} (make parity)" for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(f"nothing is measured: {', '.join(missing)} missing")
        return
    for shape in [SMALL_SHAPE] if arguments.small else arguments.shape:
        for precision in arguments.precision:
            with tempfile.TemporaryDirectory(prefix="drumline-peers-") as directory:
                case = Case(arguments.peers, shape, precision)
                report(compare(Path(directory), case, arguments.rounds), arguments.rows)


def compare(directory: Path, case: Case, rounds: int) -> list[Row]:
    config = prepare_run(directory, case.shape)
    taking_part, left_out = peers_of(case), list[Peer]()
    speeds: dict[str, list[float]] = {}
    for number in range(rounds):
        contestants: list[str | Peer] = [
            "drumline",
            *taking_part,
            "drumline again",
            *(["matrix product"] if case.is_first_shape else []),
        ]
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            name = contestant.name if isinstance(contestant, Peer) else contestant
            if isinstance(contestant, Peer):
                speed = run_peer(case, contestant)
            elif contestant == "matrix product":
                speed = run_product(case)
            else:
                speed = run_drumline(config, case.precision)
            print(f"{case.text} {case.precision}, round {number + 1}, {name}: {speed:,.0f}", flush=True)
            speeds.setdefault(name, []).append(speed)
        if number == 0:
            left_out = [peer for peer in taking_part if is_far_behind(peer, taking_part, speeds)]
            taking_part = [peer for peer in taking_part if peer not in left_out]
    return rows_of(case, speeds, taking_part, left_out)


def peers_of(case: Case) -> list[Peer]:
    bfloat16 = case.precision == "bfloat16"
    suffix = "-bf16" if bfloat16 else ""
    peers = [Peer("torch_gpt.py", f"{mode}{suffix}") for mode in ("eager", "compile")]
    peers.append(Peer("hf_gpt.py", "bf16" if bfloat16 else "f32"))
    if case.is_first_shape:
        peers += [Peer("tf_gpt.py", f"{mode}{suffix}") for mode in ("graph", "xla")]
    return peers


def is_far_behind(peer: Peer, peers: list[Peer], speeds: dict[str, list[float]]) -> bool:
    best = max(speeds[other.name][0] for other in peers if other.is_tensorflow == peer.is_tensorflow)
    return speeds[peer.name][0] < FAR_BEHIND * best


def run_drumline(config: Path, precision: str) -> float:
    """Tokens per second of a run that begins anew."""
    runs = config.parent / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    run_to_its_end(drumline("train", config, f"train.precision={precision}"))
    return tokens_per_second(runs / "run")


def run_peer(case: Case, peer: Peer) -> float:
    printed = run_to_its_end([sys.executable, str(case.folder / peer.program), peer.mode], CFG=case.text, N=f"{NUM_STEPS}")
    match = re.search(r"step=(\d+)ms tok/s=(\d+)", printed.splitlines()[-1])
    if match is None:
        raise SystemExit(f"{peer.name} printed no tok/s=: {printed}")
    return float(match[2])


def run_product(case: Case) -> float:
    """FLOP/s of the matrix product in this precision, by the library that is faster at it."""
    printed = "".join(run_to_its_end([sys.executable, str(case.folder / name)]) for name in ("gemm_tf.py", "gemm_torch.py"))
    return 1e9 * max(float(rate) for rate in re.findall(rf"\b{case.precision}\b.* ([\d.]+) GFLOP/s", printed))


def run_to_its_end(command: list[str], **variables: str) -> str:
    """What a process printed. Ends all where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**variables), check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout


def flops_per_token(shape: Shape) -> int:
    """As the peers count them: 6 for each weight, 12 times length and width for each layer's attention."""
    width, layers = shape.width, shape.num_layers
    weights = (shape.vocabulary + shape.length + 2 + layers * (12 * width + 13)) * width
    return 6 * weights + 12 * layers * width * shape.length


def rows_of(case: Case, speeds: dict[str, list[float]], taking_part: list[Peer], left_out: list[Peer]) -> list[Row]:
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    control = statistics.median(paired(speeds["drumline"], speeds["drumline again"]))
    ours, label = speeds["drumline"], f"{case.text} {case.precision}"

    def best(is_tensorflow: bool) -> str:
        names = [peer.name for peer in taking_part if peer.is_tensorflow == is_tensorflow]
        return max(names, key=medians.__getitem__)

    def note(is_tensorflow: bool) -> str:
        names = [peer.name for peer in (*taking_part, *left_out) if peer.is_tensorflow == is_tensorflow]
        figures = [f"{name} {medians[name]:,.0f}{' (round 1)' if len(speeds[name]) < len(ours) else ''}" for name in names]
        return f"tokens/s: drumline {medians['drumline']:,.0f}, {', '.join(figures)}"

    bar = BARS.get((case.text, case.precision), BARS[FIRST_SHAPE, case.precision])
    over_best = paired(ours, speeds[best(False)])
    rows = [at_least(1, f"tokens/s of `drumline train` over {best(False)}, {label}", bar, over_best, control, note(False))]
    if case.is_first_shape:
        flops = [speed * flops_per_token(case.shape) for speed in ours]
        what, bar = f"model FLOP/s over the matrix product's, {label}", UTILIZATION_BARS[case.precision]
        figures = f"{statistics.median(flops) / 1e9:.0f} over {medians['matrix product'] / 1e9:.0f} GFLOP/s"
        rows.append(at_least(2, what, bar, paired(flops, speeds["matrix product"]), control, figures))
        step_times = paired(speeds[best(True)], ours)
        what = f"step time of `drumline train` over {best(True)} of the peers, {label}"
        rows.append(at_most(3, what, STEP_TIME_BAR, step_times, control, note(True)))
    return rows


if __name__ == "__main__":
    main()
