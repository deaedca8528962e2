"""A run of changing size under the real `horovodrun`, with ranks that need no Horovod, and what is refused before it starts.

Each gang writes a line; a rank that is asked to stop leaves with 75. Other machines are addresses of this one.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.horovod import _Output
from launch.plan import Machine, Training, plan_elastic
from tests.unit.launch_programs import ROOT, SSH, are_gone, becomes_true
from trainer.cli import main
from trainer.config_io import load_config
from trainer.errors import BackendError
from trainer.monitor.roll_call import Report, roll_call
from trainer.monitor.watchdog import _line_of_loss as line_of_loss

CPU = Machine(num_cores=8, horovodrun="/bin/horovodrun")


def test_the_plan_names_the_machines_and_how_many_ranks_each_has(small_config: Path) -> None:
    planned = plan_elastic(load_config(small_config), Training(("train",), small_config), (("a", 3), ("b", 1)), CPU, 2222)
    (process,) = planned.processes
    expected = ("/bin/horovodrun", "--gloo", "-np", "4", "--disable-cache", "-H", "a:3,b:1", "-p", "2222", "train")
    assert process.argv[: len(expected)] == expected
    assert [planned.host_of(rank) for rank in range(4)] == ["a", "a", "a", "b"]


def test_a_backend_that_is_not_horovod_is_refused(small_config: Path) -> None:
    config = load_config(small_config, ["distribution.backend=mirrored"])
    with pytest.raises(BackendError, match="got mirrored, expected horovod or auto"):
        plan_elastic(config, Training(("train",), small_config), (("a", 1),), CPU)


def test_of_ranks_that_leave_with_70_the_machine_of_the_lost_one_is_to_blame() -> None:
    """In the words of the watchdog."""
    reports = [Report(0, 3, "training", 200.0, 120.0), Report(2, 2, "evaluating", 300.0, 120.0, who="process 7 on b")]
    verdict = roll_call(reports, 4, 20.0)
    assert verdict is not None
    for line, lost in ((verdict.line, [2]), (line_of_loss(reports[1], 4), [2]), ("rank 1 is gone fishing", [])):
        output = _Output()
        assert output.translate("horovodrun", f"[0]<stderr>:drumline: {line}") == f"[0] drumline: {line}"
        assert output.lost_ranks == lost


def test_lines_that_horovodrun_has_run_together_are_told_apart() -> None:
    output = _Output()
    ended = "Process 0 exit with status code 75."
    assert output.translate("horovodrun", f"{ended}Terminating remaining workers after failure of Process 0.{ended}") is None
    assert output.translate("horovodrun", f"{ended}[1]<stdout>:saved") == "[1] saved"
    assert output.translate("horovodrun", "") is None
    for line in ("Exception in thread Traceback (most recent call last):", "Process name: 1", "Exit code: 137"):
        assert output.translate("horovodrun", line) is None
    assert (output.failed_rank, output.exit_code) == (1, 137)


ALL = ["--min-workers", "1", "--max-workers", "4", "--discovery", "echo localhost:2"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ALL[:2], "--min-workers: got it without --max-workers and --discovery; expected all three, or none"),
        (ALL[2:], "--max-workers: got it without --min-workers; expected all three, or none"),
        ([*ALL, "--workers", "2"], "--workers: got 2 together with --discovery, which says who takes part; leave one out"),
        ([*ALL, "--hosts", "a:2"], "--hosts: got a:2 together with --discovery, which says who takes part; leave one out"),
        (["--min-workers", "5", *ALL[2:]], "--min-workers: got 5, expected at most --max-workers, which is 4"),
        (["--min-workers", "3", "--max-workers", "3", *ALL[4:]], "expected a multiple of the number of replicas, which is 3"),
        ([*ALL[:4], "--discovery", "echo a; exit 3"], "--discovery: 'echo a; exit 3' ended with exit code 3"),
        ([*ALL[:4], "--discovery", "echo a"], "--discovery: got 'a', expected HOST:SLOTS, as in a:4"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    options: list[str], told: str, small_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.machine._find_horovodrun", lambda: "/bin/horovodrun")
    assert main(["launch", "horovod", str(small_config), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("discovery", "printed"), [("echo localhost:3", "-np 2 --disable-cache -H localhost:2"), ("echo localhost:0", "")]
)
def test_a_dry_run_prints_what_it_would_start_first(
    discovery: str,
    printed: str,
    small_config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launch.machine._find_horovodrun", lambda: "/bin/horovodrun")
    assert main(["launch", "horovod", str(small_config), *ALL[:4], "--discovery", discovery, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert printed in out if printed else out == ""


LAUNCHER = """
import logging, sys
from launch import membership
from launch.discovery import Discovery
from launch.elastic import Elastic
from launch.machine import find_machine
from launch.plan import Plan, Process
from launch.requests import Requests
from launch.restarts import Restarts
logging.basicConfig(level=logging.INFO, format="%(message)s")
program, hosts, restarts, *sizes = sys.argv[1:]
def plan(gang, is_first):
    command = (find_machine().horovodrun, "--gloo", "-np", str(gang.size), "--disable-cache", "-H", str(gang))
    process = Process("horovodrun", (*command, sys.executable, "-u", "-c", program))
    return Plan("horovod", (process,), gang.size, None, gang.hosts)
with Requests() as requests, Discovery(f"cat {hosts}") as discovery:
    sys.exit(Elastic(plan, tuple(map(int, sizes)), Restarts(int(restarts), 0.5), discovery, requests).run())
"""

# Stops where it is asked to; ends with the code that stands in a file named after its host, or by the signal below 0.
RANK = """
import os, pathlib, signal, sys, time
rank, size, host = (os.environ["HOROVOD_" + name] for name in ("RANK", "SIZE", "HOSTNAME"))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: sys.exit(75))
print("pid", rank, "of", size, "on", host, os.getpid())
while True:
    time.sleep(0.05)
    order = pathlib.Path(FOLDER, host + "-" + rank)
    if order.exists():
        code = int(order.read_text())
        order.unlink()
        code < 0 and os.kill(os.getpid(), -code)
        sys.exit(code)
"""


class Run:
    """A launcher whose discovery script prints a file, and its ranks, which do what files in a folder say."""

    def __init__(self, folder: Path, hosts: str, sizes: tuple[int, ...], restarts: int) -> None:
        self.folder = folder
        self.say(hosts)
        (folder / "down").mkdir()
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(SSH)
        ssh.chmod(0o755)
        path = os.pathsep.join([str(ssh.parent), os.environ["PATH"]])
        env = {**os.environ, "PATH": path, "DOWN": str(folder / "down"), "TF_CPP_MIN_LOG_LEVEL": "2"}
        program = RANK.replace("FOLDER", repr(str(folder)))
        argv = [sys.executable, "-u", "-c", LAUNCHER, program, str(folder / "hosts"), str(restarts), *map(str, sizes)]
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=self.log, stderr=self.log, text=True)

    def say(self, hosts: str) -> None:
        """What the discovery script says from now on; the file appears at once."""
        (self.folder / "new").write_text(hosts.replace(",", "\n"))
        (self.folder / "new").replace(self.folder / "hosts")

    def order(self, host: str, rank: int, code: int) -> None:
        (self.folder / "order").write_text(str(code))
        (self.folder / "order").replace(self.folder / f"{host}-{rank}")

    def text(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for(self, told: str, times: int = 1) -> None:
        assert becomes_true(lambda: self.text().count(told) >= times, 45.0), self.text()

    def pids(self) -> list[int]:
        return [int(line.split()[-1]) for line in self.text().splitlines() if " pid " in line]

    def end(self, code: int) -> str:
        assert self.process.wait(timeout=45) == code, self.text()
        assert are_gone(self.pids(), seconds=1.0)
        return self.text()


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> object:
    if importlib.util.find_spec("horovod") is None:
        pytest.skip("Horovod is not installed")
    started = []

    def start(hosts: str, sizes: tuple[int, ...] = (4, 2, 1), restarts: int = 1) -> Run:
        started.append(Run(tmp_path, hosts, sizes, restarts))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        each.log.close()


@pytest.mark.processes
def test_the_gang_shrinks_and_grows_and_none_of_it_counts_as_a_failure(run) -> None:
    one = run("localhost:2", restarts=0)
    one.wait_for("of 2 on localhost", 2)
    one.say("localhost:1")
    one.wait_for("workers 2 -> 1: host localhost has 1 slot; asking the workers to save and stop.")
    one.wait_for("of 1 on localhost")
    one.say("localhost:2")
    one.wait_for("workers 1 -> 2: host localhost has 2 slots; asking the workers to save and stop.")
    one.wait_for("of 2 on localhost", 4)
    one.order("localhost", 0, 0), one.order("localhost", 1, 0)
    text = one.end(0)
    assert "Restart" not in text
    assert len(one.pids()) == 5


@pytest.mark.processes
def test_too_few_slots_are_waited_for_and_a_signal_ends_the_wait(run) -> None:
    one = run("localhost:2", sizes=(2,))
    one.wait_for("of 2 on localhost", 2)
    one.say("")
    one.wait_for("workers 2 -> 0: host localhost is gone; asking the workers to save and stop.")
    one.wait_for("Waiting for at least 2 slots; so far: 0.")
    one.say("localhost:1")
    one.wait_for("Waiting for at least 2 slots; so far: 1.")
    one.process.terminate()
    one.end(75)


@pytest.mark.processes
def test_a_killed_rank_is_a_failure_and_failures_are_counted(run) -> None:
    one = run("localhost:2")
    one.wait_for("of 2 on localhost", 2)
    os.kill(one.pids()[1], signal.SIGKILL)
    one.wait_for("a worker was ended by SIGKILL. Restart 1 of 1")
    one.wait_for("of 2 on localhost", 4)
    os.kill(one.pids()[3], signal.SIGKILL)
    assert "Giving up after 1 restarts (--restarts)." in one.end(137)


@pytest.mark.processes
@pytest.mark.parametrize("code", [2, 3, 1])
def test_what_would_only_happen_again_ends_it(code: int, run) -> None:
    one = run("localhost:1")
    one.wait_for("of 1 on localhost")
    one.order("localhost", 0, code)
    assert "Restart" not in one.end(code)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_ranks_and_the_launcher(number: signal.Signals, run) -> None:
    one = run("localhost:2")
    one.wait_for("of 2 on localhost", 2)
    one.process.send_signal(number)
    assert "Restart" not in one.end(75)


@pytest.mark.processes
def test_a_machine_whose_rank_failed_is_left_out_where_the_others_suffice(run) -> None:
    one = run("127.0.0.2:1,127.0.0.3:1")
    one.wait_for("of 2 on 127.0.0.", 2)
    one.order("127.0.0.3", 1, -9)
    one.wait_for("Host 127.0.0.3 is left out for 60 s where the others suffice.")
    one.wait_for("Starting 1 worker: 127.0.0.2:1.")
    one.wait_for("pid 0 of 1 on 127.0.0.2")
    one.order("127.0.0.2", 0, 0)
    one.end(0)


@pytest.mark.processes
def test_a_machine_that_vanishes_with_its_rank_is_a_change_and_no_failure(run) -> None:
    one = run("127.0.0.2:1,127.0.0.3:1", restarts=0)
    one.wait_for("of 2 on 127.0.0.", 2)
    (one.folder / "down" / "127.0.0.2").touch()
    one.order("127.0.0.2", 0, -9)
    time.sleep(0.3)
    one.say("127.0.0.3:1")
    one.wait_for("workers 2 -> 1: host 127.0.0.2 is gone")
    one.wait_for("pid 0 of 1 on 127.0.0.3")
    one.order("127.0.0.3", 0, 0)
    one.end(0)


@pytest.mark.processes
def test_a_machine_that_cannot_be_reached_is_left_out(run) -> None:
    one = run("127.0.0.2:1", sizes=(2, 1))
    one.wait_for("pid 0 of 1 on 127.0.0.2")
    (one.folder / "down" / "127.0.0.3").touch()
    one.say("127.0.0.2:1,127.0.0.3:1")
    one.wait_for("workers 1 -> 2: host 127.0.0.3 is there; asking the workers to save and stop.")
    one.wait_for("No connection over ssh to 127.0.0.3.")
    one.wait_for("Starting 1 worker: 127.0.0.2:1.", 2)
    one.wait_for("pid 0 of 1 on 127.0.0.2", 2)
    one.order("127.0.0.2", 0, 0)
    one.end(0)
