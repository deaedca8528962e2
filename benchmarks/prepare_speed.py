"""Measures `drumline prepare` against `datasets.map` of Hugging Face, and with two processes against one.

    python benchmarks/prepare_speed.py [--rounds 3] [--megabytes 128,512] [--peer-python /path/of/a/python/with/datasets]

The first size of text is for the peer, the second for the two processes: what each of them does for itself (start, imports,
and the words that its tokenizer has not met) takes a second or two, which the first size is too little for. How it went with
the first size stands in the note.

All read the same documents, one a line, encode them with the same BPE tokenizer of 8,192 tokens and write them to disk as
Arrow. Counted is the wall time of whole commands: start of Python, imports, and of `prepare` also the check of all input
beforehand, hashes and fsync. The peer reads the text into a data set (`load_dataset("text")`) and maps
`encode_batch_fast` over it, a thousand documents at a time; its caches are new in each round. A process is one core's
work: the tokenizer's own threads are off for all. `prepare` with one process takes part twice, as the control.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from random_text import write_documents
from rows import Row, at_least, paired, report

PEER, ONE, AGAIN, TWO = "datasets.map", "prepare", "prepare again", "prepare, 2 processes"
TRAINING_BYTES = 2_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", default="128,512", help="of text, which `prepare` divides into parts of 16 MiB and less")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has `datasets`")
    parser.add_argument("--rows", type=Path, help="adds the rows to this file")
    parser.add_argument("--small", action="store_true", help="a megabyte or two, to see whether it works")
    parser.add_argument("--map", nargs=3, metavar=("TEXT", "TOKENIZER", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.map:
        _map_datasets(*arguments.map)
        return
    sizes = [float(each) for each in ("1,2" if arguments.small else arguments.megabytes).split(",")]
    report(_measure(sizes, arguments.rounds, arguments.peer_python), arguments.rows)


def _measure(megabytes: Sequence[float], rounds: int, peer_python: str) -> list[Row]:
    for_peer, for_processes = megabytes
    rows = []
    has_peer = _has_datasets(peer_python)
    if not has_peer:
        print(f"skipped: prepare over datasets.map: {peer_python} has no `datasets`; give --peer-python", flush=True)
    contestants = (PEER, ONE, AGAIN, TWO) if has_peer else (ONE, TWO)
    seconds, num_tokens = _times(contestants, for_peer, rounds, peer_python)
    if has_peer:
        note = f"{_speeds(seconds, PEER, ONE, num_tokens)}, {for_peer:g} MB"
        control = statistics.median(paired(seconds[AGAIN], seconds[ONE]))
        what = "prepare over datasets.map, one process, tokens/s"
        rows.append(at_least(10, what, 2.0, paired(seconds[PEER], seconds[ONE]), control, note))
    of_less_text = statistics.median(paired(seconds[ONE], seconds[TWO]))
    seconds, num_tokens = _times((ONE, AGAIN, TWO), for_processes, rounds, peer_python)
    note = f"{_speeds(seconds, ONE, TWO, num_tokens)}, {for_processes:g} MB; {of_less_text:.3f} with {for_peer:g} MB"
    control = statistics.median(paired(seconds[AGAIN], seconds[ONE]))
    what = "prepare with 2 processes over 1, tokens/s"
    return [*rows, at_least(10, what, 1.8, paired(seconds[ONE], seconds[TWO]), control, note)]


def _times(contestants: Sequence[str], megabytes: float, rounds: int, peer_python: str) -> tuple[dict[str, list[float]], int]:
    """Seconds of each contestant in each round, in turn, and how many tokens the text has."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _write_inputs(directory, int(1e6 * megabytes))
        for number in range(rounds):
            for contestant in contestants if number % 2 == 0 else reversed(contestants):
                seconds[contestant].append(_run(contestant, directory, peer_python))
        parts = json.loads((directory / "store-prepare/manifest.json").read_text())["train"][0]["parts"]
    return seconds, sum(part["num_tokens"] for part in parts)


def _speeds(seconds: dict[str, list[float]], slower: str, faster: str, num_tokens: int) -> str:
    speeds = [num_tokens / statistics.median(seconds[name]) for name in (faster, slower)]
    return f"{speeds[0]:,.0f} over {speeds[1]:,.0f} tokens/s"


def _write_inputs(directory: Path, num_bytes: int) -> None:
    """Text and tokenizer, which belong to neither contestant's work."""
    from trainer.config import TokenizerConfig
    from trainer.data.tokenizer import Tokenizer

    write_documents(directory / "text.txt", num_bytes)
    write_documents(directory / "training.txt", min(num_bytes, TRAINING_BYTES), seed=2)
    lines = (directory / "training.txt").read_text().splitlines()
    Tokenizer.train(TokenizerConfig(kind="bpe", vocabulary_size=8192), lines).save(directory / "tokenizer.json")
    config = {
        "run": {"name": "prepare-speed"},
        "data": {
            "store": "none",
            "train": [{"path": str(directory / "text.txt")}],
            "format": "lines",
            "sequence_length": 256,
            "tokenizer": {"kind": "pretrained", "path": str(directory / "tokenizer.json")},
        },
        "model": {"num_layers": 1, "num_heads": 1, "width": 8},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 1, "global_batch_size": 1},
    }
    (directory / "config.yaml").write_text(json.dumps(config))


def _has_datasets(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("datasets") is not None
    return subprocess.run([python, "-c", "import datasets"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def _run(name: str, directory: Path, peer_python: str) -> float:
    """The seconds of one command, into an empty place."""
    written = directory / f"store-{name.replace(' ', '-').replace(',', '')}"
    shutil.rmtree(written, ignore_errors=True)
    if name == PEER:
        command = [peer_python, __file__, "--map", *(str(directory / each) for each in ("text.txt", "tokenizer.json"))]
        command.append(str(written))
    else:
        num_processes = "2" if name == TWO else "1"
        command = [sys.executable, "-m", "trainer", "prepare", str(directory / "config.yaml"), f"data.store={written}"]
        command += ["--processes", num_processes]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ended with exit code {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - began


def _map_datasets(text: str, tokenizer_file: str, cache: str) -> None:
    """What one writes with `datasets` for it."""
    import datasets
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(tokenizer_file)

    def encode(batch: dict[str, Sequence[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [encoding.ids for encoding in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    documents = datasets.load_dataset("text", data_files=text, split="train", cache_dir=cache)
    encoded = documents.map(encode, batched=True, remove_columns=["text"])
    assert len(encoded) == len(documents)


if __name__ == "__main__":
    main()
