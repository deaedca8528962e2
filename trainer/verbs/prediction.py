"""`drumline predict`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli import positive
from trainer.arguments import Parser, Verbs, add_run, not_empty, not_negative, probability, temperature
from trainer.verbs.lines import lines_of_file, read_lines
from trainer.verbs.start import import_tensorflow, started_run

if TYPE_CHECKING:
    from trainer.prediction.inputs import Lines


def add_predict(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("predict", help="what a run's model makes of texts; JSON lines out", parents=[common])
    add_run(parser)
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("stdin", nargs="?", choices=["-"], metavar="-", help="a text on each line of standard input")
    inputs.add_argument("--text", nargs="+", action="extend", metavar="TEXT", help="texts")
    inputs.add_argument("--input", type=Path, metavar="FILE", help="a text on each line; of FILE.jsonl a JSON object")
    parser.add_argument("--json", action="store_true", help="what is given are JSON objects with the task's fields")
    # Defaults stand in `GenerationConfig`.
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="how many to generate at most")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--temperature", type=temperature, metavar="X", help="how bold the choice is; 0 is greedy")
    choice.add_argument("--greedy", dest="temperature", action="store_const", const=0.0, help="always the likeliest token")
    parser.add_argument("--top-k", type=positive, metavar="N", help="choose among the N likeliest tokens")
    parser.add_argument("--top-p", type=probability, metavar="X", help="among the likeliest of total probability X")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="look for the likeliest text with N beams")
    parser.add_argument("--length-penalty", type=temperature, metavar="X", help="of beams: how much longer texts are favoured")
    parser.add_argument(
        "--stop", nargs="+", action="extend", type=not_empty, metavar="TEXT", help="a text ends before any of these"
    )
    parser.add_argument("--samples", type=positive, metavar="N", help="how many for each prompt")
    parser.add_argument("--seed", type=not_negative, metavar="N", help="of the random choices")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="how many texts at once")
    parser.set_defaults(handler=_predict, parser=parser)


def _predict(arguments: argparse.Namespace) -> int:
    run = started_run(arguments.run).path
    lines = _lines(arguments)
    from trainer.config import GenerationConfig

    import_tensorflow()
    from tqdm import tqdm

    from trainer.prediction.predict import predict_run

    given = {name: getattr(arguments, name) for name in GenerationConfig.model_fields}
    generation = GenerationConfig.model_validate({name: value for name, value in given.items() if value is not None})
    # Where the predictions go to the terminal they show the progress themselves.
    is_watched = sys.stderr.isatty() and not sys.stdout.isatty()
    total = _num_predictions(arguments, generation.samples)
    with tqdm(total=total, unit=" predictions", disable=not is_watched, leave=False) as bar:
        for prediction in predict_run(run, lines, generation, arguments.checkpoint):
            print(json.dumps(prediction, ensure_ascii=False), flush=True)
            bar.update()
    return 0


def _lines(arguments: argparse.Namespace) -> Lines:
    from trainer.prediction.inputs import Lines

    if arguments.text:
        return Lines(arguments.text, "--text", arguments.json)
    if arguments.stdin:
        return Lines(read_lines(sys.stdin.buffer, "standard input"), "standard input", arguments.json)
    is_json = arguments.json or arguments.input.suffix in (".jsonl", ".ndjson")
    return Lines(lines_of_file(arguments.input, "--input"), str(arguments.input), is_json)


def _num_predictions(arguments: argparse.Namespace, num_samples: int) -> int | None:
    """How many there will be; None where that is not known before the end, as of a pipe."""
    if arguments.text:
        return len(arguments.text) * num_samples
    if arguments.input is None or not arguments.input.is_file():
        return None
    with arguments.input.open("rb") as file:
        return sum(1 for _ in file) * num_samples
