"""What the small HTTP servers of a worker share: a thread a request, none of which keeps the process alive; nothing printed."""

from __future__ import annotations

import http.server
import logging
import socket
import socketserver
import threading
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_LONGEST_BODY = 1 << 20
_REQUEST_SECONDS = 10.0
# Each has a thread, whoever sent it.
_MOST_AT_ONCE = 1024


class Handler(http.server.BaseHTTPRequestHandler):
    """One request. `answer` says it all; a body that does not come, or is too long, ends the connection."""

    timeout = _REQUEST_SECONDS  # of a read or a write, not of the time to think
    server_version, sys_version = "drumline", ""

    def read_body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdecimal() or len(length) > 9 or int(length) > _LONGEST_BODY:
            self.answer(413, b"")
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s: " + format, self.client_address[0], *args)


class Server(socketserver.ThreadingTCPServer):
    """While entered, answers requests at an address; "" is all addresses of this machine, of either family.

    Raises OSError where it cannot listen.
    """

    allow_reuse_address = True  # those of connections that have ended, not of another server
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: str, port: int, handler: type[Handler]) -> None:
        self._is_dual = address == "" and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if self._is_dual else socket.AF_INET
        super().__init__((address, port), handler)
        self._free = threading.Semaphore(_MOST_AT_ONCE)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="http", daemon=True)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def server_bind(self) -> None:
        if self._is_dual:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request from %s failed", client_address, exc_info=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
