"""A run of `drumline train` at a given shape on random tokens, and how fast it was, for the benchmarks that compare whole runs.

The tokenizer has words for tokens, as many as the shape's vocabulary: each token of the store is drawn like any other.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from step_time import Shape
from tensorboard.compat.proto.event_pb2 import Event

ROOT = Path(__file__).resolve().parents[1]
BATCHES_OF_STORE = 16
WORDS_OF_LINE = 200
# Updates of a call: fewer than a user would have, so that the median is one of several intervals.
STEPS_PER_LOOP = 2
# The first calls trace, compile and fill caches.
FIRST_STEPS = 4


def shape_of(text: str) -> Shape:
    return Shape(*(int(number) for number in text.split(",")))


def prepare_run(directory: Path, shape: Shape) -> Path:
    """Writes tokenizer, text and configuration into `directory` and makes the store; the configuration's file."""
    directory.mkdir(parents=True, exist_ok=True)
    words = [f"w{number}" for number in range(1, shape.vocabulary)]
    _write_tokenizer(directory / "tokenizer.json", words)
    drawn = np.random.default_rng(1).choice(words, BATCHES_OF_STORE * shape.batch * (shape.length + 1))
    lines = (" ".join(drawn[begin : begin + WORDS_OF_LINE]) for begin in range(0, len(drawn), WORDS_OF_LINE))
    (directory / "text.txt").write_text("\n".join(lines) + "\n")
    path = directory / "config.yaml"
    path.write_text(json.dumps(_configuration(directory, shape)))
    subprocess.run(drumline("prepare", path), check=True, env=environment(), stdout=sys.stderr)
    return path


def _write_tokenizer(path: Path, words: Sequence[str]) -> None:
    import tokenizers

    vocabulary = {word: number for number, word in enumerate(["<|endoftext|>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def _configuration(directory: Path, shape: Shape) -> dict[str, Any]:
    """AdamW and clipping are those of the peers."""
    return {
        "run": {"name": "run", "directory": str(directory / "runs")},
        "data": {
            "store": str(directory / "store"),
            "train": [{"path": str(directory / "text.txt")}],
            "format": "lines",
            "sequence_length": shape.length,
            "tokenizer": {"kind": "pretrained", "path": str(directory / "tokenizer.json")},
        },
        "model": {"num_layers": shape.num_layers, "num_heads": shape.num_heads, "width": shape.width},
        "optimizer": {"learning_rate": 3e-4, "schedule": "constant", "weight_decay": 0.01, "beta2": 0.999},
        "train": {"steps": 14, "global_batch_size": shape.batch, "steps_per_loop": STEPS_PER_LOOP},
        "distribution": {"backend": "single"},
        "logging": {"every": 1},
    }


def drumline(*arguments: str | Path) -> list[str]:
    """A command of this clone's."""
    return [sys.executable, "-m", "trainer", *map(str, arguments)]


def environment(**changes: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **changes}


def tokens_per_second(run: Path) -> float:
    """Of a run that has ended: tokens of a step over the median seconds of a step, from one log entry to the next, so that
    all that is done between two updates counts. A call's steps are logged together, when it has ended."""
    logged = dict(_logged(run / "tensorboard/train"))
    steps = [step for step in sorted(logged) if step >= FIRST_STEPS and step % STEPS_PER_LOOP == 0]
    seconds = [logged[after][0] - logged[before][0] for before, after in itertools.pairwise(steps)]
    return logged[steps[-1]][1] * STEPS_PER_LOOP / statistics.median(seconds)


def _logged(directory: Path) -> Iterator[tuple[int, tuple[float, float]]]:
    """Of each step when it was logged, in seconds, and its number of tokens."""
    for path in sorted(directory.iterdir()):
        for event in _events(path.read_bytes()):
            for value in event.summary.value:
                if value.tag == "num_tokens":
                    yield event.step, (event.wall_time, value.simple_value)


def _events(data: bytes) -> Iterator[Event]:
    """The records of a file of TensorBoard's: a length in 8 bytes, its checksum in 4, the event, its checksum in 4."""
    position = 0
    while position < len(data):
        (size,) = struct.unpack_from("<Q", data, position)
        yield Event.FromString(data[position + 12 : position + 12 + size])
        position += size + 16
