"""The workers of a job come together before their ranks start, and part when these have ended."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

from launch.plan import Seat
from launch.rendezvous.caller import Caller
from launch.rendezvous.contact import Contact
from launch.rendezvous.gathering import CheckIn, Gathering
from launch.rendezvous.local_store import LocalStore
from launch.rendezvous.network import find_unknown
from launch.rendezvous.server import Rendezvous
from launch.requests import Requests
from launch.surroundings import Surroundings
from trainer.errors import DrumlineError, Stopped, UserError

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_FIRST_TOLD_SECONDS, _TELL_EVERY_SECONDS = 2.0, 30.0
_RESOLVE_SECONDS = 5.0
_FAREWELL_SECONDS = 15.0
# Where the run failed some may be lost, who never say goodbye, and the ranks of the others ask for nothing any more.
_FAREWELL_AFTER_FAILURE_SECONDS = 5.0


class Meeting:
    """While entered, this worker is there for the others, and worker 0 serves the rendezvous.

    `setup` is what must be the same on all workers, by name. A port is held for each rank of this worker until `release_ports`,
    so that nothing else takes it. `silence_seconds`: a worker that is not heard of for so long is lost.
    """

    def __init__(self, surroundings: Surroundings, secret: bytes, setup: Mapping[str, str], silence_seconds: float) -> None:
        self.surroundings = surroundings
        self._silence_seconds = silence_seconds
        self._setup = {
            "the peers": ",".join(surroundings.peers),
            "ranks on each worker": str(surroundings.ranks_per_worker),
            **setup,
        }
        self._secret = secret
        self._gathering: Gathering | None = None
        self._ports, self._rest = ExitStack(), ExitStack()
        self._has_left = False

    def __enter__(self) -> Meeting:
        here = self.surroundings
        with ExitStack() as stack:
            if here.index == 0:
                self._gathering = Gathering(here.num_workers, self._setup, self._silence_seconds)
                stack.enter_context(Rendezvous(here, self._secret, self._gathering))
            stack.enter_context(self._ports)
            seat = Seat(here.host, tuple(self._hold_port() for _ in range(here.ranks_per_worker)))
            host = "127.0.0.1" if here.index == 0 else here.peers[0]
            self._caller = Caller(host, here.port, here.index, here.job, self._secret)
            entry = CheckIn(here.index, secrets.token_hex(16), seat, self._setup)
            self._contact = stack.enter_context(Contact(self._caller, entry, here.peers, self._silence_seconds))
            self._rest = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._has_left:
            self.leave(error.exit_code if isinstance(error, DrumlineError) else DrumlineError.exit_code)
        self._rest.close()

    def wait(self, wait_seconds: float, requests: Requests) -> tuple[Seat, ...]:
        """Waits until all have come: where they are, by number.

        Raises Stopped when that is asked for, or when not all have come within so long, which names who is missing and why;
        UserError where the others will never take this worker, or someone else came in a worker's place.
        """
        contact, began = self._contact, time.monotonic()
        told = began - _TELL_EVERY_SECONDS + _FIRST_TOLD_SECONDS
        while contact.gang is None:
            now = time.monotonic()
            if requests.stop:
                raise Stopped("asked to stop before all workers were there")
            if contact.refusal is not None:
                raise contact.refusal
            if now - began > wait_seconds:
                self._give_up(wait_seconds)
            if now - told > _TELL_EVERY_SECONDS:
                told = now
                logger.info("Waiting, %.0f s of %g s: %s.", now - began, wait_seconds, "; ".join(self._absences()))
            contact.changed.wait(_LOOK_SECONDS)
            contact.changed.clear()
        requests.take()  # Nothing ran that could have done as they say.
        return contact.gang

    def broken(self) -> str | None:
        """Why the gang that was whole cannot go on; None while it can."""
        return self._contact.broken

    def open_store(self) -> LocalStore:
        """What Horovod's ranks of this worker need, once the gang is whole."""
        return LocalStore(self._caller.bound())

    def release_ports(self) -> None:
        """Lets the ranks have their ports, which they take at once."""
        self._ports.close()

    def leave(self, exit_code: int) -> None:
        """Says goodbye; worker 0 goes on serving until all have, for a while."""
        self._has_left = True
        self._contact.say_goodbye(exit_code)
        has_failed = exit_code not in (0, Stopped.exit_code)
        seconds = _FAREWELL_AFTER_FAILURE_SECONDS if has_failed else _FAREWELL_SECONDS
        if self._gathering is not None and not self._gathering.wait_until_all_have_left(seconds, besides=0):
            logger.warning("Not all workers said goodbye within %g s.", seconds)

    def _hold_port(self) -> int:
        held = self._ports.enter_context(socket.socket())
        held.bind(("", 0))
        return int(held.getsockname()[1])

    def _give_up(self, wait_seconds: float) -> None:
        told = f"not all workers came within {wait_seconds:g} s: {'; '.join(self._absences())}"
        if self._contact.refused_by is not None or (self._gathering is not None and self._gathering.strangers):
            raise UserError(told)
        raise Stopped(told)

    def _absences(self) -> list[str]:
        """Who is missing and what is wrong with it, as far as that can be seen from here."""
        here, contact = self.surroundings, self._contact
        if contact.standing is None or contact.problem is not None:
            return [f"worker 0: {contact.problem or f'nothing was heard yet from {self._caller.place}'}"]
        missing = contact.standing.missing
        strangers = self._gathering.strangers if self._gathering is not None else {}
        unknown = find_unknown({here.peers[index] for index in missing}, _RESOLVE_SECONDS)
        absent = [
            f"worker {index} ({here.peers[index]}): {_what_is_wrong(index, here, strangers, unknown)}" for index in missing
        ]
        blind = [
            f"worker {index} ({here.peers[index]}): the name {name} does not resolve there"
            for index, names in contact.standing.unresolved
            for name in names
        ]
        return absent + blind


def _what_is_wrong(index: int, here: Surroundings, strangers: Mapping[int, str], unknown: set[str]) -> str:
    if index in strangers:
        return f"someone at {strangers[index]} came as this worker with another secret"
    return "its name does not resolve" if here.peers[index] in unknown else "has not checked in"
