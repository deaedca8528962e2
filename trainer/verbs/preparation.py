"""What comes before training: `prepare`, `check` and `doctor`."""

from __future__ import annotations

import argparse
import json

from launch.cli import positive
from launch.doctor import add_arguments as add_doctor_arguments
from trainer.arguments import Parser, Verbs, add_config, shard
from trainer.errors import UserError
from trainer.verbs.planner import add_planner_options, requested


def add_prepare(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("prepare", help="text -> tokenizer and token store; safe to repeat", parents=[common])
    add_config(parser)
    parser.add_argument("--shard", type=shard, metavar="I/N", help="only the I-th of N parts of the work; 0 is the N-th")
    parser.add_argument("--merge", action="store_true", help="make the store of the shards; with --shard, if it is the last")
    parser.add_argument("--processes", type=positive, metavar="N", help="how many work at once (default: a core each)")
    parser.set_defaults(handler=_prepare, parser=parser)


def _prepare(arguments: argparse.Namespace) -> int:
    from trainer.config_io import load_config
    from trainer.data.prepare import prepare

    config = load_config(arguments.config, arguments.overrides)
    prepare(config, shard=arguments.shard, merge=arguments.merge, num_processes=arguments.processes)
    return 0


def add_check(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser(
        "check", help="validate; parameters, memory, batches, epochs, plans for a cluster; starts nothing", parents=[common]
    )
    add_config(parser, nargs="?")
    parser.add_argument("--replicas", type=positive, metavar="N", help="for so many (default: as configured, or 1)")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of configurations, for editors")
    add_planner_options(parser)
    parser.set_defaults(handler=_check, parser=parser)


def _check(arguments: argparse.Namespace) -> int:
    from trainer.config_io import config_schema, load_config

    if arguments.schema:
        print(json.dumps(config_schema(), indent=2))
        return 0
    if arguments.config is None:
        raise UserError("check: got no CONFIG, expected a YAML file, or --schema")
    from trainer.check import report
    from trainer.planning.report import planning_report

    request = requested(arguments)
    config = load_config(arguments.config, arguments.overrides)
    if request is not None:
        print(planning_report(config, request))
        return 0
    print(report(config, arguments.replicas or config.distribution.num_replicas or 1))
    return 0


def add_doctor(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("doctor", help="what would stop a run here, before it starts", parents=[common])
    add_config(parser, nargs="?")
    add_doctor_arguments(parser)
    parser.set_defaults(handler=_doctor, parser=parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from launch.doctor import examine
    from trainer import preflight

    return examine(arguments, preflight.check_packages, preflight.checks)
