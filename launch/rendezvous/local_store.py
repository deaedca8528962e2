"""Horovod's rendezvous as this worker's ranks see it: a server on 127.0.0.1 that passes on to worker 0, signed, what they ask.

Horovod's own client cannot sign. It waits for an answer as long as it takes, and asks again after 404.
"""

from __future__ import annotations

import re
import threading
import time
from http import HTTPStatus
from types import TracebackType

from launch.rendezvous.caller import Caller, Refused, Restarted, Unreachable
from launch.rendezvous.gathering import HOLD_SECONDS
from launch.rendezvous.http_server import Handler, Server

_PATIENCE_SECONDS = 20.0
_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 5.0


class LocalStore:
    """While entered, serves the ranks of this worker. What one of them has asked for is kept for the others.

    The caller is bound: ranks of a gang must not meet those of the next.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._values: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()

        class OfThisStore(_Handler):
            store = self

        self._server = Server("127.0.0.1", 0, OfThisStore)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    def __enter__(self) -> LocalStore:
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.__exit__(kind, error, trace)

    def act(self, method: str, scope: str, key: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a rank."""
        with self._lock:
            if method == "GET" and (scope, key) in self._values:
                return HTTPStatus.OK, self._values[scope, key]
            if method == "DELETE":  # this rank is connected: what comes after belongs to another beginning
                self._values = {known: value for known, value in self._values.items() if known[0] != scope}
        status, answer = self._pass_on(method, f"/store/{scope}/{key}", body)
        if method == "GET" and status == HTTPStatus.OK:
            with self._lock:
                self._values[scope, key] = answer
        return status, answer

    def _pass_on(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._caller.call(method, path, body, HOLD_SECONDS + _ANSWER_SECONDS)
            except (Unreachable, Refused) as error:
                if isinstance(error, Restarted) or time.monotonic() > until:
                    return HTTPStatus.SERVICE_UNAVAILABLE, b""
            time.sleep(_RETRY_SECONDS)


class _Handler(Handler):
    store: LocalStore

    def handle_any(self) -> None:
        body = self.read_body()
        if body is None:
            return
        match = re.fullmatch(r"/([^/]+)/([^/]+)", self.path)
        if match is None:
            self.answer(HTTPStatus.BAD_REQUEST, b"")
        else:
            self.answer(*self.store.act(self.command, match[1], match[2], body))

    do_GET = do_PUT = do_DELETE = handle_any
