"""`drumline evaluate`."""

from __future__ import annotations

import argparse
import json

from launch.cli import positive
from trainer.arguments import Parser, Verbs, add_run, all_or_not_negative
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
