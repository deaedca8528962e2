"""The verbs `launch local` and `launch horovod`; `trainer.cli` composes them into the command line.

Nothing is imported before a verb is called: `--help` has to be quick.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from launch.kubernetes.cli import add_verbs as add_kubernetes_verbs
from launch.slurm import add_verbs as add_slurm_verbs

if TYPE_CHECKING:
    from launch.plan import Plan, Training
    from launch.requests import Requests
    from launch.surroundings import Surroundings
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
    elastic = horovod.add_argument_group("elastic", "machines may come and go, and the run goes on with those that are there")
    elastic.add_argument("--min-workers", type=positive, metavar="N", help="with fewer slots it waits for more")
    elastic.add_argument("--max-workers", type=positive, metavar="N", help="it takes as many as divide the batch, up to N")
    elastic.add_argument("--discovery", metavar="SCRIPT", help="a shell command that prints a line HOST:SLOTS per machine")
    horovod.set_defaults(handler=_launch_horovod, parser=horovod)

    add_kubernetes_verbs(verbs, common)
    add_slurm_verbs(verbs, common)
    worker = verbs.add_parser("worker", help="one worker of several: meets the others, runs its ranks", parents=[common])
    _add_worker_arguments(worker)
    worker.set_defaults(handler=_launch_worker, parser=worker)


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of the run")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="wins over the file")
    parser.add_argument("--workers", type=positive, metavar="N", help="replicas (default: one per GPU, or 1)")
    parser.add_argument("--fresh", action="store_true", help="refuse to resume; restarts do resume")
    parser.add_argument("--allow-change", metavar="KEY", action="append", default=[], help="as for `drumline train`")
    parser.add_argument("--dry-run", action="store_true", help="print the commands instead of starting them")
    parser.add_argument(
        "--restarts",
        type=not_negative,
        metavar="N",
        default=3,
        help="how often a run that was interrupted or lost a worker is started again (default: 3)",
    )
    parser.add_argument(
        "--restart-pause",
        type=seconds,
        metavar="SECONDS",
        default=5.0,
        help="before the first restart; it doubles each time, up to 300 (default: 5)",
    )


def _add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of the run")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="wins over the file")
    parser.add_argument("--fresh", action="store_true", help="refuse to resume")
    parser.add_argument("--allow-change", metavar="KEY", action="append", default=[], help="as for `drumline train`")
    parser.add_argument("--dry-run", action="store_true", help="print what would be started here instead of starting it")
    add_place_arguments(
        parser.add_argument_group("place", "by default as Kubernetes, Slurm or the variables DRUMLINE_... have it")
    )


def add_place_arguments(group: argparse._ArgumentGroup) -> None:
    """Which worker this is, who the others are, and how it meets them; `surroundings_of` reads them."""
    group.add_argument("--index", type=not_negative, metavar="I", help="number of this worker, from 0")
    group.add_argument("--peers", type=_names, metavar="HOST,HOST,...", help="all workers, this one too, by number")
    group.add_argument("--ranks", type=positive, metavar="N", help="on each worker (default: one per GPU, or 1)")
    group.add_argument("--job", metavar="NAME", help="tells two jobs apart (default: drumline)")
    group.add_argument("--port", type=positive, metavar="PORT", help="at which worker 0 awaits the others (default: 29400)")
    group.add_argument("--secret-file", type=Path, metavar="FILE", help="with the secret that all workers share")
    group.add_argument("--wait-seconds", type=seconds, metavar="S", default=600.0, help="for the others (default: 600)")


def surroundings_of(arguments: argparse.Namespace, num_gpus: int) -> Surroundings:
    """Raises UserError where the place is not known."""
    from launch.surroundings import Flags, find_surroundings

    given = Flags(arguments.index, arguments.peers, arguments.ranks, arguments.job, arguments.port)
    return find_surroundings(os.environ, socket.gethostname(), given, num_gpus)


def take_secret(arguments: argparse.Namespace) -> bytes:
    """The job's secret. The ranks, which have this process's environment, need not know where it is. Raises UserError."""
    from launch.surroundings import SECRET_FILE, read_secret

    secret = read_secret(os.environ, arguments.secret_file)
    os.environ.pop(SECRET_FILE, None)
    return secret


def _launch_local(arguments: argparse.Namespace) -> int:
    from launch import machine, plan

    config, training = _load(arguments)
    this = machine.find_machine()
    usual = 1 if config.distribution.backend == "single" else len(this.gpus) or 1
    num_workers = arguments.workers or config.distribution.num_replicas or usual

    def plan_it(is_first: bool) -> Plan:
        command = training if is_first else training.again()
        return plan.plan_local(config, command, num_workers, this, machine.free_ports(num_workers))

    return _carry_out(plan_it, arguments)


def _launch_horovod(arguments: argparse.Namespace) -> int:
    from launch import machine, plan

    if _is_elastic(arguments):
        return _launch_elastic(arguments)
    config, training = _load(arguments)
    this = machine.find_machine()
    num_slots = sum(plan.parse_hosts(arguments.hosts).values()) if arguments.hosts else len(this.gpus)
    num_workers = arguments.workers or num_slots or 1

    def plan_it(is_first: bool) -> Plan:
        command = training if is_first else training.again()
        return plan.plan_horovod(config, command, num_workers, this, arguments.hosts, arguments.ssh_port)

    return _carry_out(plan_it, arguments)


def _launch_worker(arguments: argparse.Namespace) -> int:
    from launch import machine, worker
    from launch.requests import Requests

    config, training = _load(arguments)
    here = surroundings_of(arguments, len(machine.find_machine().gpus))
    if arguments.dry_run:
        print(worker.describe(config, training, here).script())
        return 0
    secret = take_secret(arguments)
    with Requests() as requests:
        return worker.run(config, training, here, secret, arguments.wait_seconds, requests)


def _is_elastic(arguments: argparse.Namespace) -> bool:
    """Whether machines may come and go. Raises UserError where the options contradict each other."""
    from trainer.errors import UserError

    options = {
        "--min-workers": arguments.min_workers,
        "--max-workers": arguments.max_workers,
        "--discovery": arguments.discovery,
    }
    given = [name for name, value in options.items() if value is not None]
    missing = [name for name in options if name not in given]
    if not given:
        return False
    if missing:
        raise UserError(f"{given[0]}: got it without {' and '.join(missing)}; expected all three, or none")
    for name, value in (("--workers", arguments.workers), ("--hosts", arguments.hosts)):
        if value is not None:
            raise UserError(f"{name}: got {value} together with --discovery, which says who takes part; leave one out")
    if arguments.min_workers > arguments.max_workers:
        raise UserError(
            f"--min-workers: got {arguments.min_workers}, expected at most --max-workers, which is {arguments.max_workers}"
        )
    return True


def _launch_elastic(arguments: argparse.Namespace) -> int:
    from launch import machine, membership, plan
    from launch.discovery import Discovery, ask
    from launch.elastic import Elastic
    from launch.requests import Requests
    from launch.restarts import Restarts

    config, training = _load(arguments)
    sizes = membership.possible_sizes(config.train, arguments.min_workers, arguments.max_workers)
    this = machine.find_machine()

    def plan_it(gang: membership.Gang, is_first: bool) -> Plan:
        command = training if is_first else training.again()
        return plan.plan_elastic(config, command, gang.hosts, this, arguments.ssh_port)

    # What is wrong whoever takes part is wrong before anyone is waited for.
    plan_it(membership.Gang((("localhost", sizes[-1]),)), True)
    if arguments.dry_run:
        slots = ask(arguments.discovery)
        gang = membership.form_gang(slots, sizes)
        if gang is None:
            logger.info("It would wait for at least %s; so far: %d.", membership.count(sizes[-1], "slot"), sum(slots.values()))
        else:
            print(plan_it(gang, True).script())
        return 0
    restarts = Restarts(arguments.restarts, arguments.restart_pause)
    with Requests() as requests, Discovery(arguments.discovery) as discovery:
        return Elastic(plan_it, sizes, restarts, discovery, requests).run()


def _load(arguments: argparse.Namespace) -> tuple[Config, Training]:
    from launch.plan import Training
    from trainer.config_io import load_config

    config = load_config(arguments.config, arguments.overrides)
    command = (sys.executable, "-m", "trainer", "train")
    overrides, allowed_changes = tuple(arguments.overrides), tuple(arguments.allow_change)
    return config, Training(command, arguments.config, overrides, arguments.fresh, allowed_changes)


def _carry_out(plan_it: Callable[[bool], Plan], arguments: argparse.Namespace) -> int:
    """Starts what `plan_it` says (asked with True for the first time), and again where it may go on."""
    from launch import local, restarts
    from launch.requests import Requests

    planned = plan_it(True)
    if planned.reason:
        logger.info("distribution.backend: auto is %s here: %s.", planned.backend, planned.reason)
    if arguments.dry_run:
        print(planned.script())
        return 0
    if not arguments.restarts and planned.backend in ("single", "mirrored"):
        local.become(planned.processes[0])
    with Requests() as requests:

        def start(is_first: bool) -> int:
            return _run(planned if is_first else plan_it(False), requests)

        return restarts.run(start, restarts.Restarts(arguments.restarts, arguments.restart_pause), requests)


def _run(planned: Plan, requests: Requests) -> int:
    from launch import horovod, local

    match planned.backend:
        case "single" | "mirrored":
            # It keeps the terminal, and with it the progress bar.
            return local.run(planned.processes, requests, in_terminal=True)
        case "multiworker":
            return local.run(planned.processes, requests)
        case "horovod":
            return horovod.run(planned, requests).exit_code


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """An argument that is a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 0")
    return int(text)


def seconds(text: str) -> float:
    """An argument that is a time in seconds, from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds, at least 0")
    return value
