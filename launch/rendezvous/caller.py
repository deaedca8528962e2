"""A worker's side of the rendezvous: calls worker 0, a connection each time, and believes only answers that are signed."""

from __future__ import annotations

import http.client
import json
import socket
import threading

from launch.rendezvous import server
from launch.rendezvous.signatures import Nonces, is_same, sign_answer, sign_request

_CONNECT_SECONDS = 5.0
_LONGEST_ANSWER = 1 << 22


class Unreachable(Exception):
    """Worker 0 did not answer. It may, later."""


class Restarted(Unreachable):
    """Worker 0 was started again, and knows nothing of what was before."""


class Refused(Exception):
    """Something answered, but not as this job's worker 0 would. `settled` says that it would again."""

    def __init__(self, message: str, *, settled: bool) -> None:
        super().__init__(message)
        self.settled = settled


class Caller:
    """Calls the rendezvous at `host` and `port` for the worker `index`; any number of threads may."""

    def __init__(self, host: str, port: int, index: int, job: str, secret: bytes) -> None:
        self.host, self.port, self.index = host, port, index
        self._job, self._secret = job, secret
        self._nonces = Nonces()
        self._session: str | None = None
        self._is_bound = False
        self._lock = threading.Lock()

    def bound(self) -> Caller:
        """A caller of this start of worker 0 alone: each call of it raises Restarted once that is over."""
        other = Caller(self.host, self.port, self.index, self._job, self._secret)
        other._session, other._is_bound = self._session or "over", True
        return other

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"

    def call(self, method: str, path: str, body: bytes = b"", patience_seconds: float = _CONNECT_SECONDS) -> tuple[int, bytes]:
        """Status and body of a signed answer: 200, 404 or 422. Raises Unreachable, Restarted and Refused."""
        with self._lock:
            if self._session is None:
                _, told = self._ask("GET", f"/workers/{self.index}/session", b"", "", _CONNECT_SECONDS)
                self._session = str(json.loads(told)["session"])
            session = self._session
        status, answer = self._ask(method, path, body, session, patience_seconds)
        if status == http.HTTPStatus.PRECONDITION_FAILED:
            with self._lock:
                if not self._is_bound:
                    self._session = None
            raise Restarted(f"worker 0 at {self.place} was started again")
        return status, answer

    def _ask(self, method: str, path: str, body: bytes, session: str, patience_seconds: float) -> tuple[int, bytes]:
        nonce = str(self._nonces.next())
        signature = sign_request(self._secret, session, self._job, method, path, nonce, body)
        headers = {
            server.JOB_HEADER: self._job,
            server.SESSION_HEADER: session,
            server.NONCE_HEADER: nonce,
            server.SIGNATURE_HEADER: signature,
        }
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(patience_seconds)
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read(_LONGEST_ANSWER)
        except socket.gaierror as error:
            raise Unreachable(f"the name {self.host} does not resolve ({error.strerror})") from error
        except http.client.HTTPException as error:
            raise Refused(f"what answers at {self.place} is no rendezvous of Drumline's", settled=False) from error
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"nothing answers at {self.place} ({error})") from error
        finally:
            connection.close()
        self._check(answer, content, nonce)
        return answer.status, content

    def _check(self, answer: http.client.HTTPResponse, content: bytes, nonce: str) -> None:
        session = answer.headers.get("Drumline-Session", "")
        expected = sign_answer(self._secret, session, self._job, nonce, answer.status, content)
        is_ours = is_same(answer.headers.get(server.SIGNATURE_HEADER, ""), expected)
        if answer.status == http.HTTPStatus.CONFLICT:
            raise Refused(f"at {self.place} is the rendezvous of another job than {self._job!r}", settled=False)
        if not session:
            raise Refused(f"what answers at {self.place} is no rendezvous of Drumline's", settled=False)
        if not is_ours:
            raise Refused(
                f"worker 0 at {self.place} has another secret than this worker: the file of --secret-file or "
                "DRUMLINE_SECRET_FILE must have the same bytes on all workers of a job",
                settled=True,
            )
        if answer.status not in (200, 404, 412, 422):
            # As when someone has changed the request on its way: the next one may come through.
            raise Unreachable(f"worker 0 at {self.place} answered {answer.status}: {content[:200].decode(errors='replace')}")
