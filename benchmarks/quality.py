"""Trains the recipes of configs/ on real data and holds what comes out against its bar.

    python benchmarks/quality.py RECIPE ... --data DIR [--directory DIR]

The recipes: sentiment, sentiment-minilm, translation, question-answering, summarization, packing. `--data` has the folders
sst2, multi30k, xquad and dialogsum; weights come from the packages of install/parity.lock. Everything is run as a user would
run it, by `drumline` in processes of its own, in `--directory`; what is there already is gone on with.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import real_weights

from trainer.data.manifest import read_manifest
from trainer.data.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
DRUMLINE = [str(Path(sys.executable).with_name("drumline"))]


class Figure(NamedTuple):
    what: str
    value: float
    bar: float
    is_most: bool = False  # whether the bar is the most that is allowed

    def __str__(self) -> str:
        is_met = self.value <= self.bar if self.is_most else self.value >= self.bar
        sign = "at most" if self.is_most else "at least"
        return f"{self.what:<60} {self.value:>9.3f}  {sign} {self.bar:g}  {'met' if is_met else 'MISSED'}"


def drumline(directory: Path, *arguments: str) -> str:
    """Runs a verb in `directory`; what it printed. Its log goes to our stderr."""
    print(f"$ drumline {' '.join(arguments)}", file=sys.stderr, flush=True)
    return subprocess.run([*DRUMLINE, *arguments], cwd=directory, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(directory: Path, recipe: str, *overrides: str, checkpoint: str = "latest") -> tuple[float, dict[str, Any]]:
    """Prepares and trains a recipe; the seconds of both, and what `drumline evaluate` says of a checkpoint."""
    config = str(ROOT / "configs" / f"{recipe}.yaml")
    started = time.monotonic()
    drumline(directory, "prepare", config, *overrides)
    drumline(directory, "train", config, *overrides)
    seconds = time.monotonic() - started
    return seconds, json.loads(drumline(directory, "evaluate", f"runs/{recipe}", "--checkpoint", checkpoint))


def sentiment(directory: Path) -> list[Figure]:
    seconds, metrics = train(directory, "sentiment")
    (told,) = predictions(drumline(directory, "predict", "runs/sentiment", "--text", "a film that stays with you"))
    print(told)
    return [
        Figure("SST-2 dev, bag of embeddings from scratch: accuracy", metrics["accuracy"], 0.79),
        Figure("the same: seconds from raw text to the last step", seconds, 120.0, is_most=True),
    ]


def sentiment_minilm(directory: Path) -> list[Figure]:
    real_weights.minilm(directory / "weights" / "all-minilm-l6-v2")
    _, metrics = train(directory, "sentiment-minilm", checkpoint="best")
    return [Figure("SST-2 dev, MiniLM fine-tuned, the best checkpoint: accuracy", metrics["accuracy"], 0.89)]


def translation(directory: Path) -> list[Figure]:
    seconds, _ = train(directory, "translation")
    source, reference = (lines_of(directory / "data" / "multi30k" / f"test_2016_flickr.{each}.gz") for each in ("en", "de"))
    lines = directory / "test_2016_flickr.en"
    lines.write_text("".join(f"{line}\n" for line in source))
    scores = {}
    for beams in (1, 4):
        printed = drumline(directory, "predict", "runs/translation", "--input", str(lines), "--num-beams", str(beams))
        scores[beams] = bleu([each["text"] for each in predictions(printed)], reference)
    return [
        Figure("Multi30k test_2016_flickr, English to German, beam 4: BLEU", scores[4], 33.0),
        Figure("the same: minutes from raw text to the last step", seconds / 60, 60.0, is_most=True),
        Figure("the same: BLEU of beam 4 less that of greedy", scores[4] - scores[1], 0.0),
    ]


def question_answering(directory: Path) -> list[Figure]:
    real_weights.minilm(directory / "weights" / "all-minilm-l6-v2")
    _, metrics = train(directory, "question-answering-minilm")
    return [Figure("XQuAD dev, MiniLM fine-tuned: F1", metrics["f1"], 40.0)]


def summarization(directory: Path) -> list[Figure]:
    real_weights.smollm2(directory / "weights" / "smollm2-135m")
    train(directory, "summarization-lora")
    dev = directory / "data" / "dialogsum" / "dev.jsonl"
    records = [json.loads(line) for line in dev.read_text().splitlines()]
    references = [record["summary"] for record in records]
    first_turns = [" ".join(record["dialogue"].splitlines()[:3]) for record in records]
    printed = drumline(directory, "predict", "runs/summarization-lora", "--input", str(dev), "--max-tokens", "80")
    written = rouge1([each["text"] for each in predictions(printed)], references)
    baseline = rouge1(first_turns, references)
    print(f"ROUGE-1 F1: {written:.2f}; of the first three turns {baseline:.2f}")
    return [Figure("DialogSum dev, SmolLM2-135M with LoRA: ROUGE-1 over lead-3", written - baseline, 10.0)]


def packing(directory: Path) -> list[Figure]:
    """The same tokens an update, in rows that best fit has filled and in rows of one pair, padded to the longest pair."""
    config = str(ROOT / "configs" / "translation.yaml")
    common = ["train.steps=60", "evaluation.every=null", "checkpoint.every=60", "logging.every=1", "train.steps_per_loop=1"]
    drumline(directory, "prepare", config)
    longest = longest_pair(directory)
    lengths = [f"data.sequence_length={longest[0]}", f"data.target_length={longest[1]}"]
    runs = {
        "packed": ["train.global_batch_size=16"],
        "padded": ["train.global_batch_size=32", "data.pack=false", "data.store=data/multi30k/store-padded", *lengths],
    }
    rates = {}
    for name, overrides in runs.items():
        given = [f"run.name=packing-{name}", *common, *overrides]
        drumline(directory, "prepare", config, *given)
        drumline(directory, "train", config, *given)
        lines = predictions((directory / "runs" / f"packing-{name}" / "metrics.jsonl").read_text())
        measured = [line for line in lines if line["split"] == "train"][10:]
        rates[name] = sum(line["num_tokens"] for line in measured) / sum(line["step_seconds"] for line in measured)
        print(f"{name}: {rates[name]:.0f} useful tokens a second")
    return [
        Figure("Multi30k, packed: share of real tokens", real_share(directory), 0.95),
        Figure("the same: useful tokens a second, packed over padded", rates["packed"] / rates["padded"], 1.8),
    ]


def longest_pair(directory: Path) -> list[int]:
    """Tokens of the longest source and the longest target, with the one that ends a target."""
    tokenizer = Tokenizer.load(directory / "data" / "multi30k" / "store" / "tokenizer.json")
    files = [directory / "data" / "multi30k" / f"train.{language}.gz" for language in ("en", "de")]
    return [max(map(len, tokenizer.encode_batch(lines_of(file)))) + 1 for file in files]


def real_share(directory: Path) -> float:
    """Of the places in the rows of the training data, both sides together."""
    (dataset,) = read_manifest(directory / "data" / "multi30k" / "store").train
    assert dataset.rows is not None
    return dataset.rows.share


def lines_of(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode().splitlines()


def predictions(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    import sacrebleu

    score = sacrebleu.corpus_bleu(hypotheses, [references])
    print(score)
    return float(score.score)


def rouge1(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    scores = [scorer.score(reference, text)["rouge1"].fmeasure for reference, text in zip(references, hypotheses, strict=True)]
    return 100.0 * sum(scores) / len(scores)


RECIPES: dict[str, Callable[[Path], list[Figure]]] = {
    "sentiment": sentiment,
    "sentiment-minilm": sentiment_minilm,
    "translation": translation,
    "question-answering": question_answering,
    "summarization": summarization,
    "packing": packing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=[*RECIPES], metavar="RECIPE")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "drumline-quality")
    arguments = parser.parse_args()
    data = arguments.directory / "data"
    for name in ("sst2", "multi30k", "xquad", "dialogsum"):
        (data / name).mkdir(parents=True, exist_ok=True)
        for file in (arguments.data / name).iterdir():
            link = data / name / file.name
            if not link.exists():
                link.symlink_to(file.resolve())
    (arguments.directory / "weights").mkdir(exist_ok=True)
    figures = [figure for name in arguments.recipes for figure in RECIPES[name](arguments.directory)]
    print(*figures, sep="\n")


if __name__ == "__main__":
    main()
