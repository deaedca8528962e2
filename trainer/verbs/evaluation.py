"""What a model is worth, and what it gives away: `evaluate` and `memorization`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from launch.cli import positive
from trainer.arguments import Parser, Verbs, add_run, all_or_not_negative
from trainer.verbs.lines import lines_of_file
from trainer.verbs.start import import_tensorflow, started_run


def add_evaluate(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("evaluate", help="validation metrics of a run's checkpoint, as JSON", parents=[common])
    add_run(parser)
    parser.add_argument("--batches", type=positive, metavar="N", help="how many (default: as the run's config says)")
    parser.add_argument(
        "--generate", type=all_or_not_negative, metavar="N|all", help="texts written for metrics of texts (default: all)"
    )
    parser.add_argument("--num-beams", type=positive, metavar="N", help="write them with N beams (default: greedily)")
    parser.set_defaults(handler=_evaluate, parser=parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    run = started_run(arguments.run).path
    import_tensorflow()
    from trainer.config import GenerationConfig
    from trainer.evaluate import evaluate_run

    generation = None if arguments.num_beams is None else GenerationConfig(num_beams=arguments.num_beams)
    result = evaluate_run(run, arguments.checkpoint, arguments.batches, arguments.generate, generation)
    print(json.dumps(result))
    return 0


def add_memorization(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser(
        "memorization", help="what a language model knows of its training texts by heart", parents=[common]
    )
    add_run(parser)
    parser.add_argument("--samples", type=positive, metavar="N", default=1000, help="of each split (default: 1000)")
    parser.add_argument("--prompt-tokens", type=positive, metavar="N", default=50, help="that the model is given (default: 50)")
    parser.add_argument("--tokens", type=positive, metavar="N", default=50, help="that it has to go on with (default: 50)")
    parser.add_argument("--canaries", type=Path, metavar="FILE", help="texts with digits that were planted, one a line")
    parser.add_argument("--alternatives", type=positive, metavar="N", default=1000, help="to each canary (default: 1000)")
    parser.set_defaults(handler=_memorization, parser=parser)


def _memorization(arguments: argparse.Namespace) -> int:
    run = started_run(arguments.run).path
    lines = [] if arguments.canaries is None else lines_of_file(arguments.canaries, "--canaries")
    canaries = [line for line in lines if line.strip()]
    import_tensorflow()
    from trainer.memorization import Extraction, measure

    extraction = Extraction(arguments.samples, arguments.prompt_tokens, arguments.tokens)
    print(json.dumps(measure(run, arguments.checkpoint, extraction, canaries, arguments.alternatives), ensure_ascii=False))
    return 0
