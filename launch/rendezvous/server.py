"""Worker 0's side of the rendezvous: an HTTP server at which the workers check in, and which keeps Horovod's store.

    GET    /workers/INDEX/session   {"session"}: the number of this start of the server
    PUT    /workers/INDEX       a check-in; {"gang", "missing", "broken", ...}, held back until it is news
    DELETE /workers/INDEX       a goodbye
    GET, PUT, DELETE /store/SCOPE/KEY     Horovod's, whose ranks reach it through `launch.rendezvous.local_store`

Requests and answers are signed (`launch.rendezvous.signatures`). What cannot be believed gets 401, another job's worker 409,
a request to a former start of the server 412, a worker with other settings 422.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from types import TracebackType
from typing import Any

from launch.plan import Seat
from launch.rendezvous.gathering import HOLD_SECONDS, CheckIn, Gathering, Mismatch, Standing
from launch.rendezvous.http_server import Handler, Server
from launch.rendezvous.signatures import SeenNonces, is_same, parse_nonce, sign_answer, sign_request
from launch.rendezvous.store import Store, horovod_scopes
from launch.surroundings import PORT, Surroundings
from trainer.errors import UserError

logger = logging.getLogger(__name__)

JOB_HEADER, SESSION_HEADER = "Drumline-Job", "Drumline-Session"
NONCE_HEADER, SIGNATURE_HEADER = "Drumline-Nonce", "Drumline-Signature"
_MOST_WARNINGS = 100

Answer = tuple[int, bytes]


class Rendezvous:
    """While entered, serves the workers of a job. Raises UserError where the port is in use."""

    def __init__(self, surroundings: Surroundings, secret: bytes, gathering: Gathering) -> None:
        self.job, self.secret, self.gathering = surroundings.job, secret, gathering
        self.session = secrets.token_hex(16)
        self.store = Store(horovod_scopes(surroundings))
        self._seen = SeenNonces()
        self._warned: set[tuple[str, str]] = set()

        class OfThisRendezvous(_Handler):
            rendezvous = self

        try:
            self._server = Server("", surroundings.port, OfThisRendezvous)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use on this machine" if error.errno == errno.EADDRINUSE else "may not be used by this user"
            raise UserError(
                f"port {surroundings.port}, at which worker 0 awaits the others, {why}; "
                f"end what listens there, or give all workers another one with --port or {PORT}"
            ) from error

    def __enter__(self) -> Rendezvous:
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.__exit__(kind, error, trace)

    def judge(self, method: str, path: str, headers: Mapping[str, str], body: bytes, address: str) -> Answer:
        """What becomes of a request: only one that is signed, new, and of this job is looked at."""
        job, session = headers.get(JOB_HEADER, ""), headers.get(SESSION_HEADER, "")
        if job != self.job:
            self._warn(address, f"it is of the job {job!r}, and this is {self.job!r}")
            return _say(HTTPStatus.CONFLICT, f"this is the rendezvous of the job {self.job!r}")
        nonce = parse_nonce(headers.get(NONCE_HEADER, ""))
        expected = sign_request(self.secret, session, job, method, path, str(nonce), body)
        if nonce is None or not is_same(headers.get(SIGNATURE_HEADER, ""), expected):
            return self._turn_away(path, address)
        if method == "GET" and re.fullmatch(r"/workers/\d{1,6}/session", path):
            return _tell({"session": self.session})
        if session != self.session:
            return _say(HTTPStatus.PRECONDITION_FAILED, "this rendezvous was started again")
        if not self._seen.take(nonce):
            self._warn(address, "it was sent before: someone repeats what was recorded")
            return _say(HTTPStatus.UNAUTHORIZED, "this request was sent before")
        return self._act(method, path, body)

    def _act(self, method: str, path: str, body: bytes) -> Answer:
        if match := re.fullmatch(r"/workers/(\d{1,6})", path):
            return self._act_on_worker(method, int(match[1]), body)
        if match := re.fullmatch(r"/store/([^/]+)/([^/]+)", path):
            return self._act_on_store(method, match[1], match[2], body)
        return _say(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _act_on_worker(self, method: str, index: int, body: bytes) -> Answer:
        try:
            told = json.loads(body)
            if method == "DELETE":
                self.gathering.leave(index, str(told["boot"]), int(told["exit_code"]))
                return _tell({})
            seat = Seat(str(told["host"]), tuple(int(port) for port in told["ports"]))
            unresolved = tuple(str(name) for name in told["unresolved"])
            entry = CheckIn(index, str(told["boot"]), seat, dict(told["setup"]), unresolved)
            known_version, hold_seconds = int(told["known_version"]), min(HOLD_SECONDS, float(told["hold_seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            return _say(HTTPStatus.BAD_REQUEST, f"this cannot be read: {type(error).__name__}: {error}")
        try:
            return _tell(asdict(self.gathering.check_in(entry, known_version, hold_seconds)))
        except Mismatch as error:
            return _say(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def _act_on_store(self, method: str, scope: str, key: str, body: bytes) -> Answer:
        if method == "GET":
            value = self.store.get(scope, key, HOLD_SECONDS)
            return (HTTPStatus.NOT_FOUND, b"") if value is None else (HTTPStatus.OK, value)
        if method == "PUT":
            self.store.put(scope, key, body)
        else:
            self.store.delete(scope, key)
        return HTTPStatus.OK, b""

    def _turn_away(self, path: str, address: str) -> Answer:
        told = re.fullmatch(r"/workers/(\d{1,6})(/session)?", path)
        if told:
            self.gathering.turn_away(int(told[1]), address)
        who = f"; it says that it is worker {told[1]}" if told else ""
        self._warn(address, f"it is not signed with this job's secret{who}")
        return _say(HTTPStatus.UNAUTHORIZED, "this request is not signed with the secret of the job")

    def _warn(self, address: str, why: str) -> None:
        """Once for each address: whoever tries again and again shall not fill the log."""
        if (address, why) not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add((address, why))
            logger.warning("The rendezvous refused a request from %s: %s.", address, why)


class _Handler(Handler):
    """Carries a request to the rendezvous, and back what that says, signed."""

    rendezvous: Rendezvous

    def handle_any(self) -> None:
        body = self.read_body()
        if body is None:
            return
        rendezvous = self.rendezvous
        address = str(self.client_address[0]).removeprefix("::ffff:")
        status, content = rendezvous.judge(self.command, self.path, dict(self.headers.items()), body, address)
        nonce = self.headers.get(NONCE_HEADER, "")
        signature = sign_answer(rendezvous.secret, rendezvous.session, rendezvous.job, nonce, int(status), content)
        self.answer(int(status), content, Drumline_Session=rendezvous.session, Drumline_Signature=signature)

    do_GET = do_PUT = do_DELETE = handle_any


def read_standing(body: bytes) -> Standing:
    """A `Standing` as it comes over the network."""
    told: dict[str, Any] = json.loads(body)
    gang = told.pop("gang")
    seats = gang and tuple(Seat(seat["host"], tuple(seat["ports"])) for seat in gang)
    unresolved = tuple((index, tuple(names)) for index, names in told.pop("unresolved"))
    return Standing(**{**told, "gang": seats, "missing": tuple(told["missing"]), "unresolved": unresolved})


def _say(status: int, message: str) -> Answer:
    return status, json.dumps({"error": message}).encode()


def _tell(content: Mapping[str, Any]) -> Answer:
    return HTTPStatus.OK, json.dumps(content).encode()
