"""Workers of a job, each a real `drumline launch worker` process on an address of its own, whose ranks are small programs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.machine import find_machine, free_ports
from launch.plan import Machine, Seat, Training, choose_worker_backend, plan_worker
from launch.surroundings import Surroundings
from launch.worker import worst
from tests.unit.launch_programs import ROOT, STOPPABLE, STUBBORN, are_gone
from trainer.cli import main
from trainer.config_io import load_config
from trainer.errors import BackendError, ConfigError

SECRET = "c2VjcmV0IHRoYXQgbm9ib2R5IHNlZXM"

# The verb itself, with another training command, and shorter times before a worker counts as lost or as refused.
WORKER = """
import sys
from launch import worker
from launch.rendezvous import contact
from launch.plan import Training
from trainer import cli
worker._NUM_SILENCES, contact._REFUSED_SECONDS = 1, 1.0
program = sys.argv.pop(1)
Training.argv = lambda training, *overrides: (sys.executable, "-u", "-c", program, *overrides)
sys.exit(cli.main(["launch", "worker", *sys.argv[1:]]))
"""
RANK = "import json, os; place = json.loads(os.environ['TF_CONFIG']); rank = place['task']['index'];"
SAY_PLACE = f"{RANK} print(rank, *place['cluster']['worker'])"
# What Horovod's own client does, without its retries.
HOROVOD_RANK = """
import http.client, os
rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
address = os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
def ask(method, path, body=b""):
    connection = http.client.HTTPConnection(*address)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.read() if answer.status == 200 else None
ask("PUT", f"/global/{rank}", f"{os.environ['HOROVOD_HOSTNAME']}/{rank}".encode())
told = []
for other in range(size):
    while (value := ask("GET", f"/global/{other}")) is None:
        pass
    told.append(value.decode())
ask("DELETE", f"/global/{rank}")
print(*told)
"""

SLOW = pytest.mark.slow
with_horovod = pytest.mark.skipif(find_machine().horovodrun is None, reason="Horovod is not installed")


@dataclass
class Job:
    """A job whose workers are started here, each when the test wants it."""

    config: Path
    secret: Path
    num_workers: int = 2
    backend: str = "multiworker"
    name: str = "demo"
    port: int = field(default_factory=lambda: free_ports(1)[0])
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, index: int, program: str, *options: str, **env: str) -> subprocess.Popen[str]:
        peers = ",".join(f"127.0.0.{number + 2}" for number in range(self.num_workers))
        place = ["--index", str(index), "--peers", peers, "--job", self.name, "--port", str(self.port)]
        command = [
            str(self.config),
            f"distribution.backend={self.backend}",
            "watchdog.silence_seconds=3.0",
            "train.global_batch_size=12",
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DRUMLINE", "TF_"))}
        worker = subprocess.Popen(
            [sys.executable, "-u", "-c", WORKER, program, *command, *place, *options],
            cwd=ROOT,
            env={**kept, "DRUMLINE_SECRET_FILE": str(self.secret), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(worker)
        return worker

    def start_all(self, program: str, *options: str) -> list[subprocess.Popen[str]]:
        return [self.start(index, program, *options) for index in range(self.num_workers)]


@pytest.fixture
def job(small_config: Path, tmp_path: Path) -> Iterator[Job]:
    secret = tmp_path / "token"
    secret.write_text(SECRET + "\n")
    job = Job(small_config, secret)
    yield job
    for worker in job.started:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()


def ends(worker: subprocess.Popen[str], seconds: float = 30.0) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = worker.communicate(timeout=seconds)
    return worker.returncode, out, err


def first_pid(worker: subprocess.Popen[str]) -> int:
    assert worker.stdout is not None
    return int(worker.stdout.readline().split()[-1])


def hear(worker: subprocess.Popen[str], pattern: str) -> str:
    """Reads what a worker says until it says this."""
    assert worker.stderr is not None
    for line in worker.stderr:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"{pattern} was not said")


# Coming together.


def test_ranks_of_all_workers_get_one_cluster_and_their_numbers(job: Job) -> None:
    job.num_workers = 3
    told = [ends(worker) for worker in job.start_all(SAY_PLACE, "--ranks", "2")]
    assert [code for code, _, _ in told] == [0, 0, 0]
    lines = sorted(line for _, out, _ in told for line in out.splitlines())
    assert [line.split()[:2] for line in lines] == [[f"[{rank}]", str(rank)] for rank in range(6)]
    clusters = {tuple(line.split()[2:]) for line in lines}
    (cluster,) = clusters
    assert [address.partition(":")[0] for address in cluster] == [f"127.0.0.{index + 2}" for index in range(3) for _ in "ab"]
    assert len(set(cluster)) == 6


@with_horovod
def test_horovods_ranks_find_each_other_through_worker_0(job: Job) -> None:
    job.backend = "horovod"
    told = [ends(worker) for worker in job.start_all(HOROVOD_RANK, "--ranks", "2")]
    assert [code for code, _, _ in told] == [0, 0]
    found = "127.0.0.2/0 127.0.0.2/1 127.0.0.3/2 127.0.0.3/3"
    assert sorted(line for _, out, _ in told for line in out.splitlines()) == [f"[{rank}] {found}" for rank in range(4)]


@with_horovod
def test_two_jobs_on_one_machine_do_not_disturb_each_other(job: Job, small_config: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another secret of sixteen bytes")
    other = Job(small_config, tmp_path / "other", num_workers=3, backend="horovod", name="other")
    job.backend = "horovod"
    try:
        workers = [*job.start_all(HOROVOD_RANK), *other.start_all(HOROVOD_RANK)]
        told = [ends(worker) for worker in workers]
    finally:
        for worker in other.started:
            worker.kill()
    assert [code for code, _, _ in told] == [0] * 5
    ours, theirs = "127.0.0.2/0 127.0.0.3/1", "127.0.0.2/0 127.0.0.3/1 127.0.0.4/2"
    assert [out for _, out, _ in told] == [f"[{rank}] {ours}\n" for rank in (0, 1)] + [f"[{n}] {theirs}\n" for n in range(3)]
    assert "refused" not in "".join(err for _, _, err in told)


@SLOW
def test_a_worker_that_calls_another_job_is_refused_and_disturbs_nobody(job: Job) -> None:
    workers = [job.start(0, SAY_PLACE)]
    job.name = "stranger"
    stranger = job.start(1, SAY_PLACE, "--wait-seconds", "2")
    code, _, err = ends(stranger)
    assert code == 2
    assert f"at 127.0.0.2:{job.port} is the rendezvous of another job than 'stranger'" in err
    job.name = "demo"
    workers.append(job.start(1, SAY_PLACE))
    told = [ends(worker) for worker in workers]
    assert [code for code, _, _ in told] == [0, 0]
    assert "refused a request from 127.0.0.1: it is of the job 'stranger', and this is 'demo'" in told[0][2]


@pytest.mark.parametrize(
    ("late", "seconds"),
    [(0, 1.0), pytest.param(0, 60.0, marks=SLOW), pytest.param(1, 1.0, marks=SLOW), pytest.param(1, 60.0, marks=SLOW)],
)
def test_a_worker_that_comes_late_is_waited_for(late: int, seconds: float, job: Job) -> None:
    early = job.start(1 - late, SAY_PLACE)
    time.sleep(seconds)
    assert early.poll() is None
    told = [ends(each) for each in (early, job.start(late, SAY_PLACE))]
    assert [code for code, _, _ in told] == [0, 0]
    if seconds > 5.0:
        assert f"worker {late}" in told[0][2]


def test_a_name_that_resolves_late_is_waited_for(job: Job, tmp_path: Path) -> None:
    """By a resolver that fails until a file is there: in Python, where the worker asks it."""
    known = tmp_path / "known"
    failing = f"""
import os, socket
resolve = socket.getaddrinfo
def getaddrinfo(host, *arguments, **options):
    if host == "127.0.0.3" and not os.path.exists({str(known)!r}):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return resolve(host, *arguments, **options)
socket.getaddrinfo = getaddrinfo
"""
    (tmp_path / "sitecustomize.py").write_text(failing)
    first = job.start(0, SAY_PLACE, PYTHONPATH=str(tmp_path))
    second = job.start(1, SAY_PLACE)
    assert "worker 0 (127.0.0.2): the name 127.0.0.3 does not resolve there" in hear(first, "Waiting")
    known.touch()
    assert [ends(worker)[0] for worker in (first, second)] == [0, 0]


def test_worker_0_may_be_started_again_while_others_wait(job: Job) -> None:
    job.num_workers = 3
    first, second = job.start(0, SAY_PLACE), job.start(1, SAY_PLACE)
    hear(first, "Waiting.*worker 2 .*has not checked in")
    first.kill()
    first.communicate()
    told = [ends(worker) for worker in (second, job.start(0, SAY_PLACE), job.start(2, SAY_PLACE))]
    assert [code for code, _, _ in told] == [0, 0, 0]


# Those who do not come, or should not.


def test_a_worker_that_never_comes_is_named_on_all_others(job: Job) -> None:
    job.num_workers = 3
    first = job.start(0, SAY_PLACE, "--wait-seconds", "2")
    second = job.start(1, SAY_PLACE, "--wait-seconds", "1.5")
    code, out, err = ends(second)
    assert (code, out) == (75, "")
    assert "not all workers came within 1.5 s: worker 2 (127.0.0.4): has not checked in" in err
    code, out, err = ends(first)
    assert (code, out) == (75, "")
    assert "worker 2 (127.0.0.4): has not checked in" in err


def test_what_is_wrong_with_a_worker_0_that_never_comes_is_named(job: Job) -> None:
    code, _, err = ends(job.start(1, SAY_PLACE, "--wait-seconds", "0.5"))
    assert code == 75
    assert f"within 0.5 s: worker 0: nothing answers at 127.0.0.2:{job.port} (" in err
    code, _, err = ends(job.start(1, SAY_PLACE, "--wait-seconds", "0.5", "--peers", "nowhere.invalid,127.0.0.3"))
    assert code == 75
    assert "worker 0: the name nowhere.invalid does not resolve" in err


@SLOW
def test_a_name_that_never_resolves_is_named(job: Job) -> None:
    code, _, err = ends(job.start(0, SAY_PLACE, "--wait-seconds", "0.5", "--peers", "127.0.0.2,nowhere.invalid"))
    assert code == 75
    assert "worker 1 (nowhere.invalid): its name does not resolve" in err


def test_a_wrong_secret_is_refused_and_named_on_both_sides(job: Job, tmp_path: Path) -> None:
    first = job.start(0, SAY_PLACE, "--wait-seconds", "3")
    wrong = tmp_path / "wrong"
    wrong.write_text("another secret of sixteen bytes")
    code, out, err = ends(job.start(1, SAY_PLACE, "--secret-file", str(wrong)))
    assert (code, out) == (2, "")
    assert f"worker 0 at 127.0.0.2:{job.port} has another secret than this worker" in err
    code, out, err = ends(first)
    assert (code, out) == (2, "")
    assert "refused a request from 127.0.0.1: it is not signed with this job's secret" in err


@SLOW
def test_a_worker_with_other_peers_is_refused_and_told_the_difference(job: Job) -> None:
    job.start(0, SAY_PLACE)
    job.num_workers = 3
    code, _, err = ends(job.start(1, SAY_PLACE, "--wait-seconds", "2"))
    assert code == 2
    assert "the peers: worker 1 (127.0.0.3) has 127.0.0.2,127.0.0.3,127.0.0.4, worker 0 has 127.0.0.2,127.0.0.3" in err


def test_sigterm_while_waiting_ends_a_worker_at_once(job: Job) -> None:
    worker = job.start(0, SAY_PLACE)
    hear(worker, "Worker 0 of 2")
    worker.terminate()
    code, _, err = ends(worker, 10.0)
    assert code == 75
    assert "asked to stop before all workers were there" in err


@SLOW
def test_a_port_in_use_is_named(job: Job) -> None:
    hear(job.start(0, SAY_PLACE), "Waiting")
    code, _, err = ends(job.start(0, SAY_PLACE))
    assert code == 2
    assert f"port {job.port}, at which worker 0 awaits the others, is in use on this machine" in err


# Ending together.


def test_sigterm_to_one_worker_reaches_its_ranks_and_is_waited_for(job: Job) -> None:
    """The others follow by what the ranks agree on among themselves; here they are asked, too."""
    workers = job.start_all(STOPPABLE)
    pids = [first_pid(worker) for worker in workers]
    for worker in workers:
        worker.terminate()
    for worker in workers:
        code, out, _ = ends(worker)
        assert code == 75
        assert "saved after SIGTERM" in out
    assert are_gone(pids)


@pytest.mark.parametrize("exit_code", [2, pytest.param(3, marks=SLOW)])
def test_the_exit_code_of_a_rank_is_its_workers_and_the_others_leave_with_70(exit_code: int, job: Job) -> None:
    program = f"{RANK} import sys, time; print('pid', os.getpid()); rank == 3 and sys.exit({exit_code}); time.sleep(60)"
    first, second = job.start_all(program, "--ranks", "2")
    pids = [first_pid(worker) for worker in (first, second)]
    code, _, err = ends(second)
    assert code == exit_code
    assert f"Worker 3 failed with exit code {exit_code}" in err
    code, _, err = ends(first)
    assert code == 70
    assert f"worker 1 (127.0.0.3) left with exit code {exit_code}" in err
    assert are_gone(pids)


def test_a_rank_that_is_killed_ends_its_worker_and_the_others_leave_with_70(job: Job) -> None:
    first, second = job.start_all(STOPPABLE)
    pids = [first_pid(worker) for worker in (first, second)]
    os.kill(pids[0], signal.SIGKILL)
    assert (ends(first)[0], ends(second)[0]) == (137, 70)
    assert are_gone(pids)


@pytest.mark.parametrize("killed", [pytest.param(0, marks=SLOW), 1])
def test_a_worker_that_is_killed_takes_its_ranks_with_it_and_the_others_leave_with_70(killed: int, job: Job) -> None:
    workers = job.start_all(STOPPABLE)
    pids = [first_pid(worker) for worker in workers]
    workers[killed].kill()
    code, _, err = ends(workers[1 - killed])
    assert code == 70
    assert f"worker {killed}" in err
    assert "was not heard of for 3 s" in err
    assert are_gone(pids)


def test_a_worker_that_is_started_again_breaks_the_gang_and_waits_for_the_next(job: Job) -> None:
    """As in a Job that replaces a pod: the others leave with 70, are started again, and all go on."""
    workers = job.start_all(STOPPABLE)
    pids = [first_pid(worker) for worker in workers]
    workers[1].kill()
    newcomer = job.start(1, SAY_PLACE)
    code, _, err = ends(workers[0])
    assert code == 70
    assert "worker 1 (127.0.0.3) was started again" in err
    assert [ends(worker)[0] for worker in (job.start(0, SAY_PLACE), newcomer)] == [0, 0]
    assert are_gone(pids)


@SLOW
def test_a_rank_that_does_not_listen_is_killed_when_the_gang_breaks(job: Job) -> None:
    stubborn = f"{STUBBORN} import os, time; print('pid', os.getpid()); time.sleep(60)"
    first, second = job.start(0, stubborn), job.start(1, "import os; print('pid', os.getpid()); os._exit(2)")
    pids = [first_pid(worker) for worker in (first, second)]
    assert (ends(second)[0], ends(first)[0]) == (2, 70)
    assert are_gone(pids)


@pytest.mark.parametrize(
    ("exit_codes", "expected"),
    [([0, 75], 75), ([75, 70], 70), ([70, 137], 137), ([137, 1], 137), ([1, 3], 3), ([3, 2, 137], 2), ([0, 0], 0)],
)
def test_of_several_exit_codes_the_worst_counts(exit_codes: list[int], expected: int) -> None:
    assert worst(exit_codes) == expected


# The secret.


def test_the_secret_is_in_no_command_line_environment_or_output(job: Job) -> None:
    workers = job.start_all(STOPPABLE)
    pids = [first_pid(worker) for worker in workers]
    seen = [Path(f"/proc/{pid}/{name}").read_bytes() for pid in pids for name in ("cmdline", "environ")]
    seen += [Path(f"/proc/{worker.pid}/{name}").read_bytes() for worker in workers for name in ("cmdline", "environ")]
    assert not any(SECRET.encode() in content for content in seen)
    assert not any(b"DRUMLINE_SECRET_FILE" in Path(f"/proc/{pid}/environ").read_bytes() for pid in pids)
    for worker in workers:
        worker.terminate()
    assert not any(SECRET in text for worker in workers for text in ends(worker)[1:])


def test_dry_run_prints_what_would_be_started_here_without_the_secret(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["launch", "worker", str(job.config), "--dry-run", "--peers", "a,b", "--index", "1", "--ranks", "2"]
    assert main([*argv, "--secret-file", str(job.secret), "distribution.backend=multiworker"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2
    described = json.loads(re.findall(r"TF_CONFIG='(.*?)'", lines[1])[0])
    assert described["cluster"]["worker"] == ["a:PORT", "a:PORT", "b:PORT", "b:PORT"]
    assert [described["task"]["index"], lines[0][-2:]] == [3, " &"]
    assert SECRET not in out + err


# The plan.

GANG = [Seat("a", (1, 2)), Seat("b", (3, 4))]
CPU = Machine(num_cores=8, horovodrun="/bin/horovodrun")


def here(num_workers: int = 2, ranks: int = 2, index: int = 1) -> Surroundings:
    return Surroundings(index, ("a", "b", "c")[:num_workers], ranks, "demo", 29400, "a test")


def test_horovods_ranks_get_what_horovodrun_sets(small_config: Path) -> None:
    config = load_config(small_config, ["distribution.backend=horovod"])
    planned = plan_worker(config, Training(("train",), small_config), here(), GANG, CPU, "127.0.0.1:7000", "eth0")
    env = planned.processes[1].env
    assert [process.name for process in planned.processes] == ["2", "3"]
    places = {
        "HOSTNAME": "b",
        "RANK": "3",
        "SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "2",
        "CROSS_RANK": "1",
        "CROSS_SIZE": "2",
    }
    assert {name: env[f"HOROVOD_{name}"] for name in places} == places
    assert (env["HOROVOD_GLOO_RENDEZVOUS_ADDR"], env["HOROVOD_GLOO_RENDEZVOUS_PORT"]) == ("127.0.0.1", "7000")
    assert (env["HOROVOD_GLOO_IFACE"], env["NCCL_SOCKET_IFNAME"]) == ("eth0", "eth0")
    assert env["HOROVOD_GLOO_TIMEOUT_SECONDS"] == "300"  # distribution.timeout_seconds


def test_what_the_user_has_tuned_stays(small_config: Path) -> None:
    config = load_config(small_config, ["distribution.backend=horovod"])
    training = Training(("train",), small_config)
    planned = plan_worker(config, training, here(), GANG, CPU, "127.0.0.1:7000", "eth0", ("NCCL_SOCKET_IFNAME",))
    assert "NCCL_SOCKET_IFNAME" not in planned.processes[0].env


def test_each_rank_has_its_share_of_what_the_container_may_use(small_config: Path) -> None:
    config = load_config(small_config, ["distribution.backend=multiworker"])
    training = Training(("train",), small_config)
    for ranks, threads in ((1, "8"), (3, "2"), (2, "4")):
        gang = [Seat(host, tuple(range(ranks))) for host in "ab"]
        config = load_config(small_config, ["distribution.backend=multiworker", f"train.global_batch_size={ranks * 2}"])
        for process in plan_worker(config, training, here(ranks=ranks), gang, CPU, "", "").processes:
            assert (process.env["TF_NUM_INTRAOP_THREADS"], process.env["TF_NUM_INTEROP_THREADS"]) == (threads, threads)
    chosen = Machine(num_cores=8, threads_are_set=True)
    assert "TF_NUM_INTRAOP_THREADS" not in plan_worker(config, training, here(), GANG, chosen, "", "").processes[0].env


def test_each_rank_has_a_gpu(small_config: Path) -> None:
    config = load_config(small_config, ["distribution.backend=horovod"])
    machine = Machine(num_cores=8, gpus=("3", "5"), horovodrun="/bin/horovodrun")
    planned = plan_worker(config, Training(("train",), small_config), here(), GANG, machine, "127.0.0.1:7000", "eth0")
    assert [process.env["CUDA_VISIBLE_DEVICES"] for process in planned.processes] == ["3", "5"]


def test_ipv6_addresses_stand_in_brackets(small_config: Path) -> None:
    config = load_config(small_config, ["distribution.backend=multiworker"])
    gang = [Seat("fd00::1", (1, 2)), Seat("fd00::2", (3, 4))]
    env = plan_worker(config, Training(("train",), small_config), here(), gang, CPU, "", "").processes[0].env
    assert json.loads(env["TF_CONFIG"])["cluster"]["worker"] == ["[fd00::1]:1", "[fd00::1]:2", "[fd00::2]:3", "[fd00::2]:4"]


@pytest.mark.parametrize(
    ("num_workers", "ranks", "machine", "backend"),
    [(1, 1, CPU, "single"), (2, 1, CPU, "horovod"), (1, 2, CPU, "horovod"), (2, 1, Machine(8), "multiworker")],
)
def test_auto_is_settled_by_what_is_installed(
    num_workers: int, ranks: int, machine: Machine, backend: str, small_config: Path
) -> None:
    chosen, reason = choose_worker_backend(load_config(small_config), here(num_workers, ranks, index=0), machine)
    assert chosen == backend
    assert reason


@pytest.mark.parametrize(
    ("override", "num_workers", "ranks", "machine", "message"),
    [
        ("distribution.backend=single", 2, 1, CPU, "got single, which is one process, and 2 ranks"),
        ("distribution.backend=mirrored", 2, 1, CPU, "got mirrored, which is one machine's, and 2 workers"),
        ("distribution.backend=horovod", 2, 1, Machine(8), "got horovod, which is not installed"),
        ("distribution.backend=horovod", 2, 2, Machine(8, ("0",), "horovodrun"), "--ranks: got 2 .a test., expected at most 1"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anyone_is_waited_for(
    override: str, num_workers: int, ranks: int, machine: Machine, message: str, small_config: Path
) -> None:
    with pytest.raises(BackendError, match=message):
        choose_worker_backend(load_config(small_config, [override]), here(num_workers, ranks), machine)


def test_a_batch_that_does_not_divide_is_refused_before_anyone_is_waited_for(small_config: Path) -> None:
    with pytest.raises(ConfigError, match="which is 6"):
        choose_worker_backend(load_config(small_config), here(3, 2), CPU)
