"""Connections between watchdogs, over real sockets: who is let in, what arrives, and that nothing waits."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from trainer.errors import BackendError
from trainer.monitor import heartbeats
from trainer.monitor.heartbeats import Event, Heartbeats

SECRET = bytes(range(32))

Result = tuple[Heartbeats | None, BackendError | None]


class Meeting:
    """Where threads, as ranks, add up their arrays."""

    def __init__(self, num_ranks: int) -> None:
        self.parts: list[np.ndarray] = [np.zeros(1)] * num_ranks
        self.barrier = threading.Barrier(num_ranks, timeout=20)


class Rank:
    """What a watchdog asks of a distribution."""

    def __init__(self, rank: int, meeting: Meeting, address: str) -> None:
        self.rank, self.num_processes, self.address, self._meeting = rank, len(meeting.parts), address, meeting

    def sum_over_processes(self, values: np.ndarray) -> np.ndarray:
        assert values.dtype == np.int64
        self._meeting.parts[self.rank] = values
        self._meeting.barrier.wait()
        total = np.sum(self._meeting.parts, axis=0)
        self._meeting.barrier.wait()
        return total


def connect_all(addresses: Sequence[str], connect_seconds: float = 10.0) -> tuple[list[Result], list[Event]]:
    """What each rank got, and what came to the chief meanwhile."""
    meeting, events = Meeting(len(addresses)), []

    def connect(rank: int) -> Result:
        result = heartbeats.connect(Rank(rank, meeting, addresses[rank]), f"process {rank}", connect_seconds)  # type: ignore[arg-type]
        return result

    with ThreadPoolExecutor(len(addresses)) as threads:
        others = [threads.submit(connect, rank) for rank in range(1, len(addresses))]
        chief = connect(0)
        while not all(other.done() for other in others):
            events += chief[0].poll() if chief[0] is not None else []
            time.sleep(0.005)
        return [chief, *(other.result() for other in others)], events


@contextmanager
def connected(num_ranks: int) -> Iterator[list[Heartbeats]]:
    results, events = connect_all(["localhost"] * num_ranks)
    ranks = [connections for connections, _ in results if connections is not None]
    assert len(ranks) == num_ranks
    assert sorted(event.rank for event in events) == list(range(1, num_ranks))
    assert all(event.message is not None and event.message["who"] == f"process {event.rank}" for event in events)
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


@contextmanager
def waiting(num_ranks: int = 3) -> Iterator[Heartbeats]:
    """A chief to whom nobody has come yet."""
    chief = Heartbeats(0, num_ranks, SECRET, heartbeats._listen(is_one_machine=True, num_ranks=num_ranks))
    try:
        yield chief
    finally:
        chief.close()


def collect(rank: Heartbeats, is_enough: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 10
    while not is_enough(events):
        assert time.monotonic() < deadline, events
        events += rank.poll()
        time.sleep(0.005)
    return events


def port_of(chief: Heartbeats) -> int:
    assert chief._listener is not None
    return int(chief._listener.getsockname()[1])


def test_messages_arrive_in_order_and_the_end_after_them() -> None:
    with connected(3) as (chief, first, second):
        chief.send({"to": "all"})
        chief.send({"to": 2}, ranks=2)
        assert collect(first, lambda events: len(events) == 1) == [Event(0, {"to": "all"})]
        assert collect(second, lambda events: len(events) == 2) == [Event(0, {"to": "all"}), Event(0, {"to": 2})]
        long = {"text": "ä" * 5000}
        for message in ({"number": 1}, long, {"number": 2}):
            first.send(message)
        first.flush(1.0)
        first.close()
        expected = [Event(1, {"number": 1}), Event(1, long), Event(1, {"number": 2}), Event(1, None)]
        assert collect(chief, lambda events: len(events) == 4) == expected
        chief.send({"to": "those that are left"})
        assert collect(second, lambda events: len(events) == 1)


def test_the_chief_that_closes_is_seen_by_all() -> None:
    with connected(3) as (chief, first, second):
        chief.send({"last": "words"})
        chief.close()
        for rank in (first, second):
            assert collect(rank, lambda events: len(events) == 2) == [Event(0, {"last": "words"}), Event(0, None)]


@pytest.mark.parametrize(
    "greeting",
    [
        b'{"kind": "greeting", "rank": 1, "secret": "00", "who": "process 1"}\n',
        b'{"kind": "greeting", "rank": 1, "who": "process 1"}\n',
        b'{"kind": "greeting", "rank": 1, "secret": "\xc3\xa4", "who": "process 1"}\n',
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"[1, 2]\n",
        b"\n",
        b'{"kind": "greeting", "rank": 1, "secret": "\\ud800"}\n',
        b"[" * 1020 + b"\n",
        b"\x16\x03\x01" + bytes(4000),
        b"",
    ],
)
def test_strangers_are_turned_away(greeting: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with waiting() as chief:
        stranger = socket.create_connection(("127.0.0.1", port_of(chief)))
        stranger.sendall(greeting)
        if not greeting:
            stranger.close()
        deadline = time.monotonic() + 5
        while not caplog.messages and time.monotonic() < deadline:
            assert chief.poll() == []
            time.sleep(0.005)
        assert caplog.messages == ["the watchdog turned away a connection that did not know the run's secret"]
        if greeting:
            stranger.settimeout(5)
            with suppress(ConnectionResetError):  # where it was not even read
                assert stranger.recv(100) == b""


def test_a_rank_is_let_in_only_once_and_the_secret_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with waiting() as chief:
        greeting = {"kind": "greeting", "rank": 1, "secret": SECRET.hex(), "who": "process 1"}
        with socket.create_connection(("127.0.0.1", port_of(chief))) as once:
            once.sendall(json.dumps(greeting).encode() + b"\n")
            assert collect(chief, lambda events: len(events) == 1) == [Event(1, greeting)]
            with socket.create_connection(("127.0.0.1", port_of(chief))) as again:
                again.sendall(json.dumps(greeting).encode() + b"\n")
                while not caplog.messages:
                    assert chief.poll() == []
        assert SECRET.hex() not in caplog.text


def test_when_all_have_come_nobody_else_can_connect() -> None:
    with waiting(num_ranks=2) as chief:
        port = port_of(chief)
        with socket.create_connection(("127.0.0.1", port)) as silent, socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(json.dumps({"kind": "greeting", "rank": 1, "secret": SECRET.hex()}).encode() + b"\n")
            collect(chief, lambda events: len(events) == 1)
            assert silent.recv(100) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_who_sends_something_else_later_counts_as_gone() -> None:
    with connected(2) as (chief, other):
        other._connections[0].socket.sendall(b'{"fine": 1}\nnot JSON\n{"never": "read"}\n')
        assert collect(chief, lambda events: len(events) == 2) == [Event(1, {"fine": 1}), Event(1, None)]


def test_sending_never_waits_for_who_does_not_read() -> None:
    with connected(2) as (chief, other):
        began = time.monotonic()
        for number in range(20_000):
            chief.send({"number": number, "text": "x" * 1000})
        assert time.monotonic() - began < 5
        assert len(chief._connections[1]._unsent) < 100_000
        # What it reads in the end is whole, without the part for which there was no room.
        numbers: list[int] = []
        while not numbers or chief._connections[1]._unsent:
            numbers += [event.message["number"] for event in other.poll() if event.message is not None]
            chief.poll()
        assert numbers == list(range(len(numbers)))


def test_other_machines_are_listened_for_only_where_there_are_some() -> None:
    for is_one_machine, names in ((True, ("127.0.0.1",)), (False, ("::", "0.0.0.0"))):
        with heartbeats._listen(is_one_machine, num_ranks=2) as listener:
            assert listener.getsockname()[0] in names


@pytest.mark.parametrize("addresses", [("node", "node"), ("127.0.0.1", "localhost")])
def test_machines_are_the_same_where_their_names_are(addresses: Sequence[str]) -> None:
    """The one name need not be known, as it is not used; of two it is that of the chief."""
    results, _ = connect_all(addresses)
    for connections, problem in results:
        assert connections is not None, problem
        connections.close()


def test_a_chief_that_cannot_be_reached_is_an_error_that_says_what_to_do() -> None:
    results, _ = connect_all(["no-such-host.invalid", "localhost"], connect_seconds=0.5)
    problem = results[1][1]
    assert problem is not None and "\n" not in str(problem)
    assert "rank 1 cannot reach the watchdog of rank 0 at no-such-host.invalid:" in str(problem)
    assert "ip_local_port_range" in str(problem) and "watchdog.enabled=false" in str(problem)
    assert results[0][0] is not None
    results[0][0].close()
