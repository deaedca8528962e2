"""The rendezvous of the workers: real servers and callers on this machine, and what is refused; the gathering with a clock of
its own."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import pytest

from launch.machine import free_ports
from launch.plan import Seat
from launch.rendezvous import network
from launch.rendezvous.caller import Caller, Refused, Restarted, Unreachable
from launch.rendezvous.gathering import CheckIn, Gathering, Mismatch, Standing
from launch.rendezvous.local_store import LocalStore
from launch.rendezvous.server import Rendezvous
from launch.rendezvous.signatures import Nonce, SeenNonces, sign_answer, sign_request
from launch.rendezvous.store import Store
from launch.surroundings import Surroundings
from trainer.errors import UserError

SECRET, OTHER_SECRET = b"the secret of this job", b"the secret of another"
SETUP = {"the backend": "horovod"}


def surroundings(index: int = 0, num_workers: int = 2, ranks: int = 1, job: str = "demo", port: int = 0) -> Surroundings:
    peers = tuple(f"127.0.0.{number + 2}" for number in range(num_workers))
    return Surroundings(index, peers, ranks, job, port or free_ports(1)[0], "a test")


def entry(index: int, boot: str = "first") -> CheckIn:
    return CheckIn(index, boot, Seat(f"host-{index}", (7000 + index,)), SETUP)


@dataclass
class Served:
    """A rendezvous that is being served, and who calls it."""

    here: Surroundings
    rendezvous: Rendezvous
    gathering: Gathering

    def caller(self, secret: bytes = SECRET, job: str = "demo", index: int = 1) -> Caller:
        return Caller("127.0.0.1", self.here.port, index, job, secret)

    def signed(self, method: str, path: str, body: bytes = b"", count: int = 1) -> dict[str, str]:
        session, nonce = self.rendezvous.session, f"{'ab' * 16}-{count}"
        signature = sign_request(SECRET, session, "demo", method, path, nonce, body)
        names = ("Drumline-Job", "Drumline-Session", "Drumline-Nonce", "Drumline-Signature")
        return dict(zip(names, ("demo", session, nonce, signature), strict=True))

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.here.port, timeout=10)
        connection.request(method, path, body, headers or {})
        return connection.getresponse().status


@pytest.fixture
def served() -> Iterator[Served]:
    here = surroundings()
    gathering = Gathering(2, SETUP, silence_seconds=10.0)
    with Rendezvous(here, SECRET, gathering) as rendezvous:
        yield Served(here, rendezvous, gathering)


def check_in(caller: Caller, index: int, boot: str = "first", **changes: object) -> tuple[int, dict[str, object]]:
    told = {"host": f"host-{index}", "ports": [7000], "boot": boot, "setup": SETUP, "unresolved": []}
    body = json.dumps({**told, "known_version": -1, "hold_seconds": 0.0, **changes}).encode()
    status, answer = caller.call("PUT", f"/workers/{index}", body)
    return status, json.loads(answer)


# What is believed.


def test_the_gang_is_whole_when_all_have_checked_in(served: Served) -> None:
    _, first = check_in(served.caller(), 0)
    _, second = check_in(served.caller(), 1)
    assert (first["gang"], first["missing"]) == (None, [1])
    assert second["gang"] == [{"host": f"host-{index}", "ports": [7000]} for index in (0, 1)]


def test_whoever_waits_is_told_at_once_who_came(served: Served) -> None:
    """Held back on worker 0, not asked for again and again."""
    _, first = check_in(served.caller(), 0)
    later = threading.Timer(0.5, check_in, (served.caller(), 1))
    later.start()
    began = time.monotonic()
    _, second = check_in(served.caller(), 0, known_version=first["version"], hold_seconds=5.0)
    assert 0.3 < time.monotonic() - began < 3.0
    assert second["gang"] is not None
    later.join()


def test_a_request_with_another_secret_is_refused_and_named_once(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    stranger = served.caller(OTHER_SECRET)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(Refused, match=r"worker 0 at 127\.0\.0\.1:.* has another secret than this worker") as caught:
                check_in(stranger, 1)
            assert caught.value.settled
            assert served.ask("PUT", "/workers/1", b"{}", {"Drumline-Job": "demo"}) == 401
    assert (
        "refused a request from 127.0.0.1: it is not signed with this job's secret; it says that it is worker 1" in caplog.text
    )
    assert len(caplog.records) == 1
    assert served.gathering.strangers == {1: "127.0.0.1"}
    assert SECRET.decode() not in caplog.text


def test_a_request_of_another_job_is_refused_and_named(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(Refused, match="the rendezvous of another job than 'other'"):
        check_in(served.caller(job="other"), 1)
    assert "it is of the job 'other', and this is 'demo'" in caplog.text


def test_a_request_counts_once(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    headers = served.signed("PUT", "/store/global/0", b"value")
    assert served.ask("PUT", "/store/global/0", b"value", headers) == 200
    with caplog.at_level(logging.WARNING):
        assert served.ask("PUT", "/store/global/0", b"value", headers) == 401
    assert "someone repeats what was recorded" in caplog.text


def test_a_request_recorded_before_the_server_was_started_again_is_refused(served: Served) -> None:
    headers = served.signed("PUT", "/store/global/0", b"value")
    served.rendezvous.session = "another"
    assert served.ask("PUT", "/store/global/0", b"value", headers) == 412
    assert served.rendezvous.store.get("global", "0") is None


@pytest.mark.parametrize("altered", ["method", "path", "body", "nonce", "session", "signature", "nothing"])
def test_a_request_that_was_altered_on_its_way_is_refused(altered: str, served: Served) -> None:
    method, path, body = "PUT", "/store/global/0", b"value"
    headers = served.signed(method, path, body)
    if altered in ("nonce", "session", "signature"):
        name = f"Drumline-{altered.capitalize()}"
        headers[name] = headers[name][:-1] + ("2" if headers[name][-1] != "2" else "3")
    method = "DELETE" if altered == "method" else method
    path = "/store/global/1" if altered == "path" else path
    body = b"other" if altered == "body" else body
    assert served.ask(method, path, body, headers) == (200 if altered == "nothing" else 401)
    assert (served.rendezvous.store.get("global", "0") == b"value") == (altered == "nothing")


def test_an_answer_that_was_altered_on_its_way_is_not_believed(served: Served) -> None:
    """By a server in between that passes on all but a digit of a port."""
    caller = Caller("127.0.0.1", between(served.here.port, b"7000", b"7001"), 1, "demo", SECRET)
    check_in(served.caller(), 0)
    with pytest.raises(Refused, match="has another secret"):
        check_in(caller, 1)


def between(port: int, old: bytes, new: bytes) -> int:
    """A server that passes on connections one after another, the answers altered; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(client.recv(65536))
                time.sleep(0.1)
                client.setblocking(False)
                with suppress(BlockingIOError):
                    server.sendall(client.recv(65536))  # the body
                client.setblocking(True)
                while piece := server.recv(65536):
                    client.sendall(piece.replace(old, new))
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_a_signed_answer_belongs_to_its_request() -> None:
    one, other = (sign_answer(SECRET, "session", "demo", nonce, 200, b"{}") for nonce in ("ab-1", "ab-2"))
    assert one != other


def test_what_is_signed_cannot_be_divided_another_way() -> None:
    assert sign_request(SECRET, "", "a", "GET", "/b", "c-1", b"") != sign_request(SECRET, "", "aGET", "", "/b", "c-1", b"")


def test_requests_may_overtake_one_another_but_none_counts_twice() -> None:
    seen = SeenNonces()
    order = [2, 1, 5, 4, 3]
    assert [seen.take(Nonce("a", count)) for count in order] == [True] * 5
    assert [seen.take(Nonce("a", count)) for count in order] == [False] * 5
    assert seen.take(Nonce("b", 1))
    for count in range(6, 20_000):
        assert seen.take(Nonce("a", count))
    assert not seen.take(Nonce("a", 7))
    assert len(seen._seen["a"]) < 10_000  # what is remembered has a limit


def test_what_cannot_be_read_or_is_too_long_is_refused_and_the_server_goes_on(served: Served) -> None:
    for count, body in enumerate((b"", b"[]", b'{"boot": 1}', b"\xff"), start=1):
        assert served.ask("PUT", "/workers/1", body, served.signed("PUT", "/workers/1", body, count=count)) == 400
    assert served.ask("PUT", "/workers/1", b"", {"Content-Length": "99999999"}) == 413
    assert served.ask("GET", "/elsewhere", b"", served.signed("GET", "/elsewhere", count=9)) == 404
    with socket.create_connection(("127.0.0.1", served.here.port)) as silent:
        silent.sendall(b"PUT /workers/1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
        assert check_in(served.caller(), 1)[0] == 200


def test_a_worker_with_other_settings_is_told_which(served: Served) -> None:
    status, answer = check_in(served.caller(), 1, setup={"the backend": "multiworker"})
    assert (status, answer["error"]) == (422, "the backend: worker 1 (host-1) has multiworker, worker 0 has horovod")


def test_a_port_in_use_is_named(served: Served) -> None:
    with pytest.raises(UserError, match=f"port {served.here.port}, at which worker 0 awaits the others, is in use.*--port"):
        Rendezvous(served.here, SECRET, served.gathering)


def test_names_that_do_not_resolve_and_ports_where_nothing_answers_are_told_apart() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unreachable, match=r"the name nowhere\.invalid does not resolve"):
        Caller("nowhere.invalid", port, 1, "demo", SECRET).call("GET", "/session")
    with pytest.raises(Unreachable, match=f"nothing answers at 127.0.0.1:{port} .*refused"):
        Caller("127.0.0.1", port, 1, "demo", SECRET).call("GET", "/session")
    assert network.find_unknown({"localhost", "nowhere.invalid", "127.0.0.9"}, 5.0) == {"nowhere.invalid"}


def test_a_server_of_something_else_is_named() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    threading.Thread(target=answer, daemon=True).start()
    with listener, pytest.raises(Refused, match="is no rendezvous of Drumline's"):
        Caller("127.0.0.1", listener.getsockname()[1], 1, "demo", SECRET).call("GET", "/session")


# Worker 0 that is started again.


def test_after_a_new_start_of_worker_0_who_waits_checks_in_again(served: Served) -> None:
    caller = served.caller()
    check_in(caller, 1)
    with started_again(served) as again:
        with pytest.raises(Restarted):
            check_in(caller, 1)
        assert check_in(caller, 1)[0] == 200
        assert check_in(again.caller(), 0)[1]["gang"] is not None


def test_ranks_of_a_gang_do_not_meet_those_of_the_next(served: Served) -> None:
    caller = served.caller()
    check_in(caller, 1)
    with LocalStore(caller.bound()) as store, started_again(served) as again:
        for _ in range(2):
            assert store.act("PUT", "global", "0", b"of the gang before")[0] == 503
        assert again.rendezvous.store.get("global", "0") is None


@contextmanager
def started_again(served: Served) -> Iterator[Served]:
    """Ends a rendezvous and starts it anew at the same port."""
    served.rendezvous.__exit__(None, None, None)
    gathering = Gathering(2, SETUP, silence_seconds=10.0)
    with Rendezvous(served.here, SECRET, gathering) as rendezvous:
        yield Served(served.here, rendezvous, gathering)


# Horovod's store.


def test_ranks_reach_the_store_through_their_own_worker(served: Served) -> None:
    with LocalStore(served.caller()) as one, LocalStore(served.caller()) as other:
        asked: list[tuple[int, bytes]] = []
        waiting = threading.Thread(target=lambda: asked.append(ask(other.address, "GET", "/global/0")))
        waiting.start()
        time.sleep(0.3)
        assert ask(one.address, "PUT", "/global/0", b"\x00address\xff")[0] == 200
        waiting.join()
        assert asked == [(200, b"\x00address\xff")]
        assert ask(one.address, "GET", "/nonsense")[0] == 400


def test_a_scope_is_emptied_when_all_of_its_ranks_are_connected() -> None:
    store = Store({"global": 2})
    store.put("global", "0", b"a")
    store.delete("global", "0")
    store.delete("global", "0")
    assert store.get("global", "0") == b"a", "the other rank may still ask"
    store.delete("global", "1")
    assert store.get("global", "0") is None
    store.put("ad-hoc", "0", b"b")
    store.delete("ad-hoc", "0")
    assert store.get("ad-hoc", "0") is None


def ask(address: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


# Who is there: the same rules, with a clock that is set.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def gather(num_workers: int = 2) -> tuple[Gathering, Clock]:
    clock = Clock()
    return Gathering(num_workers, SETUP, silence_seconds=60.0, clock=clock), clock


def see(gathering: Gathering, *entries: CheckIn) -> Standing:
    return [gathering.check_in(each, -1, 0.0) for each in entries][-1]


def test_a_worker_that_came_and_fell_silent_is_missing_again() -> None:
    gathering, clock = gather(3)
    assert see(gathering, entry(1), entry(0)).missing == (2,)
    clock.now += 20.0
    standing = see(gathering, entry(0), entry(2))
    assert (standing.gang, standing.missing) == (None, (1,))
    assert see(gathering, entry(1, "second")).gang is not None


def test_a_worker_that_was_started_again_before_the_gang_was_whole_takes_its_place() -> None:
    gathering, _ = gather()
    see(gathering, entry(1))
    standing = see(gathering, replace(entry(1, "second"), seat=Seat("host-1", (8000,))), entry(0))
    assert standing.gang is not None
    assert standing.gang[1].ports == (8000,)
    assert standing.broken is None


def test_a_worker_that_is_started_again_after_that_breaks_the_gang_and_is_not_of_it() -> None:
    gathering, _ = gather()
    see(gathering, entry(0), entry(1))
    newcomer = see(gathering, entry(1, "second"))
    assert (newcomer.is_another, newcomer.gang) == (True, None)
    assert see(gathering, entry(0)).broken == "worker 1 (host-1) was started again"


def test_a_worker_of_the_gang_that_falls_silent_breaks_it() -> None:
    gathering, clock = gather()
    see(gathering, entry(0), entry(1))
    clock.now += 50.0
    assert see(gathering, entry(0)).broken is None
    clock.now += 20.0
    assert see(gathering, entry(0)).broken == "worker 1 (host-1) was not heard of for 60 s"


@pytest.mark.parametrize(("exit_code", "is_broken"), [(0, False), (75, False), (1, True), (2, True), (3, True), (70, True)])
def test_a_worker_that_fails_breaks_the_gang_at_once(exit_code: int, is_broken: bool) -> None:
    gathering, _ = gather()
    see(gathering, entry(0), entry(1))
    gathering.leave(1, "first", exit_code)
    expected = f"worker 1 (host-1) left with exit code {exit_code}" if is_broken else None
    assert see(gathering, entry(0)).broken == expected


def test_those_who_do_not_follow_one_that_stopped_are_ended() -> None:
    gathering, clock = gather()
    see(gathering, entry(0), entry(1))
    gathering.leave(1, "first", 75)
    clock.now += 130.0
    assert see(gathering, entry(0)).broken == "worker 1 left with exit code 75, and the others did not follow"


def test_a_worker_that_leaves_before_the_gang_is_whole_is_missing_and_its_successor_welcome() -> None:
    gathering, _ = gather()
    see(gathering, entry(1))
    gathering.leave(1, "another", 75)
    assert see(gathering, entry(0)).gang is not None
    gathering, _ = gather()
    see(gathering, entry(1))
    gathering.leave(1, "first", 75)
    assert see(gathering, entry(0)).missing == (1,)


def test_the_gang_waits_for_a_worker_that_does_not_find_the_others() -> None:
    gathering, _ = gather()
    standing = see(gathering, replace(entry(1), unresolved=("host-0",)), entry(0))
    assert (standing.gang, standing.missing, standing.unresolved) == (None, (), ((1, ("host-0",)),))
    assert see(gathering, entry(1)).gang is not None


def test_worker_0_waits_for_the_goodbyes_of_all_others() -> None:
    gathering, _ = gather()
    assert gathering.wait_until_all_have_left(0.0, besides=0), "there is no gang"
    see(gathering, entry(0), entry(1))
    assert not gathering.wait_until_all_have_left(0.1, besides=0)
    threading.Timer(0.2, gathering.leave, (1, "first", 0)).start()
    assert gathering.wait_until_all_have_left(5.0, besides=0)


def test_a_number_that_is_none_of_the_workers_is_refused() -> None:
    gathering, _ = gather()
    with pytest.raises(Mismatch, match="worker 0 knows 2 workers; there is no number 2"):
        see(gathering, entry(2))


def test_the_interface_that_leads_to_this_machine_itself_is_the_loopback() -> None:
    assert network.find_interface("127.0.0.1") == "lo"
    assert network.find_interface("127.0.0.2") == "lo"
