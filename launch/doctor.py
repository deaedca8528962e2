"""`drumline doctor`: says, a line a check, what would stop a run here before it starts.

A check is a name and a function that returns a detail. It raises UserWarning for what slows a run down, UserError for what
stops it, with what to do, and another DrumlineError for what may go well when it is started again. All are made, whatever
the others find.
"""

from __future__ import annotations

import argparse
import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from launch.cli import add_place_arguments, positive, surroundings_of, take_secret
from trainer.errors import DrumlineError, HangDetected, Stopped, UserError

if TYPE_CHECKING:
    from launch.all_reduce import Measurement, Start
    from launch.health import Health
    from launch.plan import Machine, Training
    from launch.requests import Requests
    from launch.surroundings import Surroundings
    from trainer.config import Config

logger = logging.getLogger(__name__)

Check = tuple[str, Callable[[], str]]

_RESOLVE_EVERY_SECONDS = 1.0
# Beyond it the times in logs and checkpoints mislead. Nothing breaks: the rendezvous goes by numbers, not by clocks.
_CLOCK_SECONDS = 1.0


class ChecksOfConfig(Protocol):
    """The checks that know what a configuration means; `trainer.preflight.checks` is one."""

    def __call__(
        self, config: Config, *, num_replicas: int | None, writes: bool, replica_memory: Callable[[], tuple[int, str]]
    ) -> list[Check]: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, metavar="N", help="for so many replicas here, which all-reduce once")
    gang = parser.add_argument_group("gang", "as one worker of many, like `drumline launch worker`: all of them run it")
    gang.add_argument("--gang", action="store_true", help="meet the other workers, and all-reduce with them")
    add_place_arguments(gang)


def examine(arguments: argparse.Namespace, check_packages: Callable[[], str], checks_of_config: ChecksOfConfig) -> int:
    """Makes all checks and prints them; the exit code."""
    from launch.health import Health
    from launch.machine import find_machine

    machine = find_machine()
    health = Health(machine)
    checks: list[Check] = [("packages", check_packages), ("TensorFlow", health.tensorflow)]
    try:
        config, problem = _load(arguments), None
    except UserError as error:
        config, problem = None, error
    place = _find_place(arguments, config, machine)
    checks += [
        ("Horovod", lambda: health.horovod(_need_for_horovod(config, place, machine))),
        ("GPUs", health.accelerators),
        ("cores", health.cores),
        ("limits", health.limits),
        ("shared memory", lambda: health.shared_memory(place.num_replicas_here)),
    ]
    if problem is not None:
        checks.insert(0, ("configuration", _raiser(problem)))
    if config is not None:
        checks += checks_of_config(
            config,
            num_replicas=place.num_replicas,
            writes=place.is_first,
            replica_memory=lambda: health.replica_memory(place.num_replicas_here),
        )
    if arguments.gang:
        checks += _checks_of_gang(arguments, config, place)
    elif config is not None:
        checks.append(("all-reduce", lambda: _all_reduce_here(arguments, config, place, health)))
    return run(checks)


def run(checks: Iterable[Check]) -> int:
    """Prints a line for each check as soon as it is known; the worst exit code of those that fail."""
    from launch.worker import worst

    codes = [0]
    for name, check in checks:
        verdict, code = "ok", 0
        try:
            detail = check()
        except UserWarning as warning:
            verdict, detail = "note", str(warning)
        except DrumlineError as error:
            verdict, detail, code = "FAIL", str(error), error.exit_code
        except Exception as error:
            traceback.print_exc()
            verdict, detail, code = "FAIL", f"a fault of ours: {type(error).__name__}: {error}", DrumlineError.exit_code
        codes.append(code)
        print(f"{verdict:<6}{name}: {'; '.join(detail.splitlines())}", flush=True)
    return worst(codes)


@dataclass(frozen=True)
class _Place:
    """Where the run would be: how many replicas in all (None where it is not known) and on this machine, and whether this one
    has the first. `surroundings` are those of a gang, unless there is a `problem` with them."""

    num_replicas: int | None
    num_replicas_here: int
    is_first: bool = True
    surroundings: Surroundings | None = None
    problem: UserError | None = None


def _find_place(arguments: argparse.Namespace, config: Config | None, machine: Machine) -> _Place:
    if not arguments.gang:
        usual = 1 if config is not None and config.distribution.backend == "single" else len(machine.gpus) or 1
        asked = arguments.workers or (config.distribution.num_replicas if config is not None else None)
        return _Place(asked or usual, asked or usual)
    try:
        found = surroundings_of(arguments, len(machine.gpus))
    except UserError as error:
        return _Place(None, 1, problem=error)
    return _Place(found.num_ranks, found.ranks_per_worker, found.index == 0, found)


def _need_for_horovod(config: Config | None, place: _Place, machine: Machine) -> str | None:
    """Why a run needs it; None where it does not."""
    backend = config.distribution.backend if config is not None else None
    if backend == "horovod":
        return "distribution.backend is horovod"
    if backend == "auto" and machine.horovodrun and (place.num_replicas or 1) > 1:
        return "distribution.backend auto takes it for several workers where it is installed"
    return None


def _all_reduce_here(arguments: argparse.Namespace, config: Config, place: _Place, health: Health) -> str:
    from launch import all_reduce

    if place.num_replicas_here == 1:
        return "one replica has nothing to reduce; --workers N tries N"
    start = all_reduce.on_this_machine(config, place.num_replicas_here, health.machine)
    try:
        return _describe(_measure(arguments, config, start, range(place.num_replicas_here)))
    except HangDetected as error:  # a gang may do better another time; ranks of one machine will not
        raise UserError(str(error)) from error


def _checks_of_gang(arguments: argparse.Namespace, config: Config | None, place: _Place) -> list[Check]:
    if place.surroundings is None:
        return [("gang", _raiser(place.problem or UserError("no surroundings")))]
    surroundings, wait_seconds = place.surroundings, arguments.wait_seconds
    checks: list[Check] = [("peers", lambda: _resolve(surroundings, wait_seconds))]
    if config is None:
        return checks

    found: list[Measurement] = []

    def all_reduce() -> str:
        found.append(_measure_gang(arguments, config, surroundings))
        return _describe(found[0])

    def clocks() -> str:
        if not found:
            raise UserWarning("not compared, since the all-reduce failed")
        return _compare_clocks(found[0])

    return [*checks, ("all-reduce", all_reduce), ("clocks", clocks)]


def _measure_gang(arguments: argparse.Namespace, config: Config, surroundings: Surroundings) -> Measurement:
    from launch import all_reduce, worker

    secret = take_secret(arguments)
    # Not the port of the run itself: a worker that is done here may begin it while others are not.
    there = replace(surroundings, port=surroundings.port + 1)

    def start(training: Training, requests: Requests) -> int:
        with_any_batch = all_reduce.with_any_batch(config, there.num_ranks)
        return worker.run(with_any_batch, training, there, secret, arguments.wait_seconds, requests)

    ranks = range(there.first_rank, there.first_rank + there.ranks_per_worker)
    return _measure(arguments, config, start, ranks, arguments.wait_seconds)


def _measure(
    arguments: argparse.Namespace, config: Config, start: Start, ranks: range, wait_seconds: float = 0.0
) -> Measurement:
    from launch import all_reduce

    timeout_seconds = config.distribution.timeout_seconds
    return all_reduce.measure(
        arguments.config, arguments.overrides, start, ranks, wait_seconds=wait_seconds, timeout_seconds=timeout_seconds
    )


def _describe(measured: Measurement) -> str:
    return (
        f"{measured.replicas} replicas over {measured.library} ({measured.backend}): {measured.bytes / 2**20:.0f} MiB in "
        f"{1e3 * measured.seconds:.1f} ms, {measured.bus_bytes_per_second / 1e9:.2f} GB/s on the bus; the sum is exact"
    )


def _compare_clocks(measured: Measurement) -> str:
    rank, worst = max(enumerate(measured.clock_offsets_seconds), key=lambda entry: abs(entry[1]))
    if abs(worst) > _CLOCK_SECONDS:
        raise UserWarning(
            f"that of rank {rank} is {abs(worst):,.1f} s {'ahead of' if worst > 0 else 'behind'} that of rank 0; times in logs "
            "and checkpoints will mislead: set the machines' clocks by NTP"
        )
    return f"within {abs(worst):.3f} s of rank 0's"


def _resolve(surroundings: Surroundings, wait_seconds: float) -> str:
    """That the names of all workers lead to addresses, within so long: those of pods are known once they run."""
    until = time.monotonic() + wait_seconds
    found: dict[str, list[str]] = {}
    problems: dict[str, str] = {}
    while len(found) < surroundings.num_workers:
        for peer in surroundings.peers:
            if peer in found:
                continue
            try:
                found[peer] = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(peer, None, type=socket.SOCK_STREAM)})
            except (OSError, UnicodeError) as error:
                problems[peer] = getattr(error, "strerror", None) or str(error)
        missing = [f"{peer} ({problems[peer]})" for peer in surroundings.peers if peer not in found]
        if missing and time.monotonic() >= until:
            raise Stopped(
                f"does not resolve after {wait_seconds:g} s: {', '.join(missing)}; see that these workers run, that the names "
                "are right, and in Kubernetes that their Service is there and publishes addresses that are not ready"
            )
        if missing:
            time.sleep(_RESOLVE_EVERY_SECONDS)
    told = ", ".join(f"{peer} {' '.join(addresses)}" for peer, addresses in found.items())
    several = [peer for peer, addresses in found.items() if len(addresses) > 1]
    if several:
        raise UserWarning(f"{told}; {', '.join(several)}: several addresses for one worker, of which any may be taken")
    return f"{len(found)} resolve, this is {surroundings.index} ({surroundings.source}): {told}"


def _load(arguments: argparse.Namespace) -> Config | None:
    from trainer.config_io import load_config

    return None if arguments.config is None else load_config(arguments.config, arguments.overrides)


def _raiser(error: UserError) -> Callable[[], str]:
    def fail() -> str:
        raise error

    return fail
