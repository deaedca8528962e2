"""One worker of a job, one on each machine or in each pod: it meets the others and runs its ranks.

No ssh, no MPI and no hostfile: whatever started the workers (a Job, Slurm, a person) need only start them all.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack

from launch import local, machine
from launch.plan import Plan, Seat, Training, choose_worker_backend, plan_worker
from launch.rendezvous import network
from launch.rendezvous.meeting import Meeting
from launch.requests import Requests
from launch.surroundings import Surroundings
from trainer.config import Config
from trainer.errors import Diverged, DrumlineError, HangDetected, Stopped, UserError

logger = logging.getLogger(__name__)

# The ranks' own watchdogs, which know what each was doing, come first.
_NUM_SILENCES = 3
_GRACE_SECONDS = 15.0
_LOST = HangDetected.exit_code


def run(
    config: Config,
    training: Training,
    surroundings: Surroundings,
    secret: bytes,
    wait_seconds: float,
    requests: Requests,
) -> int:
    """Meets the others within `wait_seconds`, runs this worker's ranks, and waits for them.

    The exit code is the worst of the ranks', and at least 70 where the gang broke.

    Raises Stopped where not all workers came, UserError where this one cannot take part.
    """
    this = machine.find_machine()
    backend, reason = choose_worker_backend(config, surroundings, this)
    here = surroundings
    logger.info("Worker %d of %d of the job %s (%s): %s.", here.index, here.num_workers, here.job, here.source, here.host)
    if reason:
        logger.info("distribution.backend: auto is %s here: %s.", backend, reason)
    silence_seconds = config.watchdog.silence_seconds * _NUM_SILENCES
    with Meeting(here, secret, {"the backend": backend}, silence_seconds) as meeting:
        gang = meeting.wait(wait_seconds, requests)
        logger.info("All %d workers are there; starting %s.", here.num_workers, _ranks(here))
        with ExitStack() as stack:
            address, interface = "", ""
            if backend == "horovod":
                interface = os.environ.get("HOROVOD_GLOO_IFACE") or _find_interface(here)
                address = stack.enter_context(meeting.open_store()).address
            planned = plan_worker(config, training, here, gang, this, address, interface, os.environ)
            meeting.release_ports()
            exit_code = _run_ranks(planned, meeting, requests)
        meeting.leave(exit_code)
    return exit_code


def describe(config: Config, training: Training, surroundings: Surroundings) -> Plan:
    """What `run` would start, with words in place of what is only known when all have come."""
    here = surroundings
    gang = [Seat(host, ("PORT",) * here.ranks_per_worker) for host in here.peers]
    interface = os.environ.get("HOROVOD_GLOO_IFACE", "INTERFACE")
    return plan_worker(config, training, here, gang, machine.find_machine(), "127.0.0.1:PORT", interface, os.environ)


def worst(exit_codes: Sequence[int]) -> int:
    """That of several which says most about what to do: put it right, do not start it again, look into it, start it again."""

    def severity(exit_code: int) -> int:
        known = (0, Stopped.exit_code, _LOST, DrumlineError.exit_code, Diverged.exit_code, UserError.exit_code)
        return known.index(exit_code if exit_code in known else DrumlineError.exit_code)

    return max(exit_codes, key=severity)


def _run_ranks(planned: Plan, meeting: Meeting, requests: Requests) -> int:
    """Runs the ranks to their end, or until the gang breaks: then they are ended, and the exit code is at least 70."""
    broken: list[str] = []

    def change() -> str | None:
        reason = meeting.broken()
        if reason is not None:
            broken.append(reason)
        return reason

    def choose(exit_codes: Sequence[int]) -> int:
        # A rank that had to be killed because the others are gone has not failed by itself.
        return worst([_LOST if broken and code == 128 + signal.SIGKILL else code for code in exit_codes])

    exit_code = local.run(
        planned.processes, requests, change=change, change_seconds=_GRACE_SECONDS, choose=choose, grace_seconds=_GRACE_SECONDS
    )
    return worst([exit_code, _LOST]) if broken else exit_code


def _find_interface(here: Surroundings) -> str:
    """The interface that leads to the others: to worker 0, or, from there, to worker 1. Raises UserError."""
    target = "127.0.0.1" if here.num_workers == 1 else here.peers[1 if here.index == 0 else 0]
    try:
        interface, why = network.find_interface(target), "none of this machine's has the address that leads there"
    except OSError as error:
        interface, why = None, str(error)
    if interface is None:
        raise UserError(f"no network interface to {target} is found ({why}); set HOROVOD_GLOO_IFACE to its name, as in eth0")
    return interface


def _ranks(here: Surroundings) -> str:
    last = here.first_rank + here.ranks_per_worker - 1
    return f"rank {last}" if last == here.first_rank else f"ranks {here.first_rank} to {last}"
