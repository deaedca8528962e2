"""The verbs `launch local` and `launch horovod`; `trainer.cli` composes them into the command line.

Nothing is imported before a verb is called: `--help` has to be quick.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from launch.plan import Plan, Training
    from trainer.config import Config

logger = logging.getLogger(__name__)

AnyParser = TypeVar("AnyParser", bound=argparse.ArgumentParser)


def add_verbs(subparsers: argparse._SubParsersAction[AnyParser], common: AnyParser) -> None:
    """Adds `launch` and what can be launched."""
    launch = subparsers.add_parser("launch", help="start a run as several processes", parents=[common])
    verbs = launch.add_subparsers(metavar="WHERE", dest="where", required=True)

    local = verbs.add_parser(
        "local", help="processes on this machine, for whichever backend the config names", parents=[common]
    )
    _add_training_arguments(local)
    local.set_defaults(handler=_launch_local, parser=local)

    horovod = verbs.add_parser("horovod", help="horovodrun, on this machine or over ssh on others", parents=[common])
    _add_training_arguments(horovod)
    horovod.add_argument("--hosts", metavar="HOST:SLOTS,...", help="machines and the ranks each may hold: a:4,b:4")
    horovod.add_argument("--ssh-port", type=int, metavar="PORT", help="of ssh on the other machines")
    horovod.set_defaults(handler=_launch_horovod, parser=horovod)


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of the run")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="wins over the file")
    parser.add_argument("--workers", type=positive, metavar="N", help="replicas (default: one per GPU, or 1)")
    parser.add_argument("--fresh", action="store_true", help="refuse to resume")
    parser.add_argument("--dry-run", action="store_true", help="print the commands instead of starting them")


def _launch_local(arguments: argparse.Namespace) -> int:
    from launch import machine, plan

    config, training = _load(arguments)
    this = machine.find_machine()
    usual = 1 if config.distribution.backend == "single" else len(this.gpus) or 1
    num_workers = arguments.workers or config.distribution.num_replicas or usual
    ports = machine.free_ports(num_workers)
    return _carry_out(plan.plan_local(config, training, num_workers, this, ports), arguments.dry_run)


def _launch_horovod(arguments: argparse.Namespace) -> int:
    from launch import machine, plan

    config, training = _load(arguments)
    this = machine.find_machine()
    num_slots = sum(plan.parse_hosts(arguments.hosts).values()) if arguments.hosts else len(this.gpus)
    num_workers = arguments.workers or num_slots or 1
    planned = plan.plan_horovod(config, training, num_workers, this, arguments.hosts, arguments.ssh_port)
    return _carry_out(planned, arguments.dry_run)


def _load(arguments: argparse.Namespace) -> tuple[Config, Training]:
    from launch.plan import Training
    from trainer.config_io import load_config

    config = load_config(arguments.config, arguments.overrides)
    command = (sys.executable, "-m", "trainer", "train")
    return config, Training(command, arguments.config, tuple(arguments.overrides), arguments.fresh)


def _carry_out(planned: Plan, dry_run: bool) -> int:
    if planned.reason:
        logger.info("distribution.backend: auto is %s here: %s.", planned.backend, planned.reason)
    if dry_run:
        print(planned.script())
        return 0
    from launch import horovod, local

    match planned.backend:
        case "single" | "mirrored":
            local.become(planned.processes[0])
        case "multiworker":
            return local.run(planned.processes)
        case "horovod":
            return horovod.run(planned.processes[0])


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)
