"""Connections between the ranks' watchdogs: each to the chief's, over TCP, a JSON object on each line.

They live beside the collectives, so that a rank can still be heard, or be missed, when a collective is stuck. Whoever
connects shows a random secret that the ranks have exchanged through a collective.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import BackendError

if TYPE_CHECKING:  # it imports TensorFlow
    from trainer.distribution import Distribution

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 30.0
_SECRET_BYTES = 32
_INVITATION_BYTES = 512  # the secret, two bytes of port, one of length, and a name, which has at most 253
_LONGEST_GREETING = 1024
_LONGEST_LINE = 1 << 16
_MOST_UNSENT = 1 << 16
_MOST_STRANGERS = 256

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """What came from a rank: a message, or None when its connection has closed."""

    rank: int
    message: Message | None


class Heartbeats:
    """The open connections of one rank: to the chief, or the chief's to all others. Nothing in it waits."""

    def __init__(self, rank: int, num_ranks: int, secret: bytes, listener: socket.socket | None) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self._secret = secret.hex()
        self._listener = listener
        self._connections: dict[int, _Connection] = {}
        self._strangers: list[_Connection] = []
        self._selector = selectors.DefaultSelector()
        if listener is not None:  # until all have come
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    def add(self, rank: int, connection: _Connection) -> None:
        self._connections[rank] = connection
        self._selector.register(connection.socket, selectors.EVENT_READ, rank)

    def poll(self) -> list[Event]:
        """What has come since the last call, each rank's messages in the order in which it sent them."""
        events: list[Event] = []
        for key, _ in self._selector.select(0):
            if self._listener is not None and key.fileobj is self._listener:
                self._accept(self._listener)
            elif key.data is not None:
                events += self._receive(key.data)
        for stranger in list(self._strangers):
            events += self._greet(stranger)
        for connection in self._connections.values():
            connection.flush()
        return events

    def send(self, message: Message, ranks: int | None = None) -> None:
        """Sends to one rank, or to all that are connected."""
        for rank, connection in self._connections.items():
            if ranks is None or rank == ranks:
                connection.send(message)

    def flush(self, seconds: float) -> None:
        """Waits until all is handed to the operating system, at most so long."""
        deadline = time.monotonic() + seconds
        while any(connection.flush() for connection in self._connections.values()) and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, *, at_exit: bool = False) -> None:
        """Closes the connections, or, `at_exit`, leaves that to the operating system when the process has ended, by which
        the others know that it has."""
        for connection in self._connections.values():
            if at_exit:
                connection.socket.detach()
            else:
                connection.socket.close()
        self._connections.clear()
        self._stop_listening()
        self._selector.close()

    def _receive(self, rank: int) -> Iterator[Event]:
        connection = self._connections[rank]
        for message in connection.receive(_LONGEST_LINE):
            yield Event(rank, message)
        if connection.closed:
            self._selector.unregister(connection.socket)
            connection.socket.close()
            del self._connections[rank]
            yield Event(rank, None)

    def _accept(self, listener: socket.socket) -> None:
        while len(self._strangers) < _MOST_STRANGERS:
            try:
                accepted, _ = listener.accept()
            except OSError:  # nobody is there any more, or no descriptor is free: perhaps the next time
                return
            self._strangers.append(_Connection(accepted))

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for stranger in self._strangers:
            stranger.socket.close()
        self._strangers.clear()

    def _greet(self, stranger: _Connection) -> Iterator[Event]:
        """Takes in a rank that has shown the secret; turns away who shows another, or says nothing for long."""
        greetings = stranger.receive(_LONGEST_GREETING, most=1)
        if not greetings and not stranger.closed and time.monotonic() - stranger.since < _CONNECT_SECONDS:
            return
        self._strangers.remove(stranger)
        greeting = greetings[0] if greetings else {}
        rank, secret = greeting.get("rank"), str(greeting.get("secret"))
        known = hmac.compare_digest(secret.encode(errors="replace"), self._secret.encode())
        if not known or not isinstance(rank, int) or not 0 < rank < self.num_ranks or rank in self._connections:
            logger.warning("the watchdog turned away a connection that did not know the run's secret")
            stranger.socket.close()
            return
        self.add(rank, stranger)
        stranger.send({"kind": "welcome"})
        if len(self._connections) == self.num_ranks - 1:
            self._stop_listening()
        yield Event(rank, greeting)
        yield from self._receive(rank)  # what came with the greeting and is no longer in the socket


def connect(
    distribution: Distribution, who: str, connect_seconds: float = _CONNECT_SECONDS
) -> tuple[Heartbeats | None, BackendError | None]:
    """This rank's connections, or why there are none. All ranks call it together, with collectives in between. `who` is told
    to the chief.

    The chief listens on this machine alone where all ranks have the same address. It returns before the others have
    connected: that happens when it polls.
    """
    rank, num_ranks = distribution.rank, distribution.num_processes
    addresses = gather(distribution, int.from_bytes(hashlib.sha256(distribution.address.encode()).digest()[:7], "big"))
    is_one_machine = len(set(addresses)) == 1
    listener, problem, invitation = None, None, bytes(_INVITATION_BYTES)
    if rank == 0:
        address = "127.0.0.1" if is_one_machine else distribution.address
        secret, port = secrets.token_bytes(_SECRET_BYTES), 0
        try:
            listener = _listen(is_one_machine, num_ranks)
            port = listener.getsockname()[1]
        except OSError as error:
            problem = BackendError(f"the watchdog of rank 0 cannot listen for the others: {error}; {_WITHOUT}")
        invitation = _encode(secret, port, address)
    # One byte in each number: the chief's and zeros.
    summed = distribution.sum_over_processes(np.frombuffer(invitation, np.uint8).astype(np.int64))
    secret, port, address = _decode(bytes(int(value) for value in summed))
    if rank == 0:
        return (Heartbeats(rank, num_ranks, secret, listener), None) if listener else (None, problem)
    if port == 0:
        return None, BackendError(f"the watchdog of rank 0 cannot listen for the others: see its own message; {_WITHOUT}")
    try:
        connection = _reach(
            address, port, {"kind": "greeting", "rank": rank, "secret": secret.hex(), "who": who}, connect_seconds
        )
    except OSError as error:
        return None, BackendError(
            f"rank {rank} cannot reach the watchdog of rank 0 at {address}:{port} ({error}): let TCP through from all machines "
            f"of the run to the ports that {address} gives out by itself (sysctl net.ipv4.ip_local_port_range); {_WITHOUT}"
        )
    heartbeats = Heartbeats(rank, num_ranks, secret, None)
    heartbeats.add(0, connection)
    return heartbeats, None


_WITHOUT = "or set watchdog.enabled=false and do without"


def gather(distribution: Distribution, value: int) -> list[int]:
    """The values of all ranks, by rank; each has at most 63 bits."""
    stacked = np.zeros(distribution.num_processes, np.int64)
    stacked[distribution.rank] = value
    return [int(each) for each in distribution.sum_over_processes(stacked)]


def _listen(is_one_machine: bool, num_ranks: int) -> socket.socket:
    if is_one_machine:
        return socket.create_server(("127.0.0.1", 0), backlog=num_ranks)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=num_ranks, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=num_ranks)


def _reach(address: str, port: int, greeting: Message, seconds: float) -> _Connection:
    """Connects to the chief and waits for its welcome; OSError when that takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = _Connection(socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic())))
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)  # a name may become known, and a network passable, a little later
    connection.send(greeting)
    while not connection.receive(_LONGEST_LINE, most=1):
        if connection.closed:
            raise ConnectionError("it hung up")
        if time.monotonic() > deadline:
            connection.socket.close()
            raise TimeoutError(f"it did not answer for {seconds:.0f} s")
        time.sleep(0.02)
    return connection


def _encode(secret: bytes, port: int, address: str) -> bytes:
    name = address.encode()
    return (secret + port.to_bytes(2, "big") + bytes([len(name)]) + name).ljust(_INVITATION_BYTES, b"\0")


def _decode(invitation: bytes) -> tuple[bytes, int, str]:
    secret, rest = invitation[:_SECRET_BYTES], invitation[_SECRET_BYTES:]
    return secret, int.from_bytes(rest[:2], "big"), rest[3 : 3 + rest[2]].decode()


class _Connection:
    """A socket that never waits, with what has come of a line, and what could not yet be sent."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.closed = False
        self.since = time.monotonic()
        self._arrived = b""
        self._unsent = b""

    def send(self, message: Message) -> None:
        """Once much is waiting the other end does not read, and more would be in vain."""
        if len(self._unsent) < _MOST_UNSENT:
            self._unsent += json.dumps(message).encode() + b"\n"
            self.flush()

    def flush(self) -> bool:
        """Sends what can be sent at once. Whether something is left that can be sent later."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return True
        except OSError:  # closed by the other end, which shows when reading, after what it sent before
            self._unsent = b""
        return False

    def receive(self, longest: int, most: int | None = None) -> list[Message]:
        """The messages that have come, the first `most` of them. An end that sends no messages counts as closed."""
        try:
            while len(self._arrived) <= longest:
                piece = self.socket.recv(65536)
                if not piece:
                    self.closed = True
                    break
                self._arrived += piece
        except BlockingIOError:
            pass
        except OSError:  # reset: its process or machine is gone
            self.closed = True
        messages: list[Message] = []
        while most is None or len(messages) < most:
            line, newline, rest = self._arrived.partition(b"\n")
            if not newline:
                self.closed = self.closed or len(line) > longest
                break
            self._arrived = rest
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                self.closed = True
                break
            messages.append(message)
        return messages


def this_process() -> str:
    """Its number and machine, as the others name it."""
    return f"process {os.getpid()} on {socket.gethostname()}"
