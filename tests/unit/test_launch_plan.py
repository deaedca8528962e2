"""Plans: which processes make up a run, by backend and machine, and what is refused before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.plan import Machine, Plan, Training, parse_hosts, plan_horovod, plan_local
from trainer.cli import main
from trainer.config_io import load_config
from trainer.errors import BackendError, ConfigError, UserError

CPU = Machine(num_cores=8, horovodrun="/bin/horovodrun")
WITHOUT_HOROVOD = Machine(num_cores=8)
TWO_GPUS = Machine(num_cores=8, gpus=("3", "5"), horovodrun="/bin/horovodrun")
PORTS = [7001, 7002, 7003, 7004]


def plan(config: Path, backend: str, num_workers: int, machine: Machine = CPU, *overrides: str) -> Plan:
    chosen = (f"distribution.backend={backend}", *overrides)
    training = Training(("python", "-m", "trainer", "train"), config, chosen)
    return plan_local(load_config(config, chosen), training, num_workers, machine, PORTS[:num_workers])


def test_single_is_the_training_command_itself(small_config: Path) -> None:
    (process,) = plan(small_config, "single", 1).processes
    assert process.argv == ("python", "-m", "trainer", "train", str(small_config), "distribution.backend=single")
    assert process.env == {}


def test_single_refuses_several_workers(small_config: Path) -> None:
    with pytest.raises(BackendError, match="got single, which is one process, and 2 workers"):
        plan(small_config, "single", 2)


def test_mirrored_is_one_process_with_so_many_replicas(small_config: Path) -> None:
    (process,) = plan(small_config, "mirrored", 4).processes
    assert process.argv[-1] == "distribution.num_replicas=4"


def test_multiworker_is_a_process_each_with_its_place_in_the_cluster(small_config: Path) -> None:
    processes = plan(small_config, "multiworker", 2).processes
    assert [process.name for process in processes] == ["0", "1"]
    for rank, process in enumerate(processes):
        described = json.loads(process.env["TF_CONFIG"])
        assert described["cluster"] == {"worker": ["127.0.0.1:7001", "127.0.0.1:7002"]}
        assert described["task"] == {"type": "worker", "index": rank}
        assert process.env["TF_NUM_INTRAOP_THREADS"] == "4"
        assert "CUDA_VISIBLE_DEVICES" not in process.env


def test_multiworker_gives_each_process_a_gpu(small_config: Path) -> None:
    processes = plan(small_config, "multiworker", 2, TWO_GPUS).processes
    assert [process.env["CUDA_VISIBLE_DEVICES"] for process in processes] == ["3", "5"]


def test_threads_that_the_user_has_set_are_left_alone(small_config: Path) -> None:
    machine = Machine(num_cores=8, threads_are_set=True)
    assert all("TF_NUM_INTRAOP_THREADS" not in each.env for each in plan(small_config, "multiworker", 2, machine).processes)


def test_horovod_is_one_horovodrun(small_config: Path) -> None:
    (process,) = plan(small_config, "horovod", 2).processes
    assert process.argv[:5] == ("/bin/horovodrun", "--gloo", "-np", "2", "python")


def test_horovod_that_is_not_installed_names_the_command_that_installs_it(small_config: Path) -> None:
    with pytest.raises(BackendError, match="make horovod"):
        plan(small_config, "horovod", 2, WITHOUT_HOROVOD)


@pytest.mark.parametrize(
    ("num_workers", "machine", "backend"),
    [(1, CPU, "single"), (2, CPU, "horovod"), (2, WITHOUT_HOROVOD, "multiworker"), (2, TWO_GPUS, "horovod")],
)
def test_auto_is_settled_by_the_launcher_and_said(num_workers: int, machine: Machine, backend: str, small_config: Path) -> None:
    planned = plan(small_config, "auto", num_workers, machine)
    assert planned.backend == backend
    assert planned.reason
    assert all(f"distribution.backend={backend}" in process.argv for process in planned.processes)


@pytest.mark.parametrize("backend", ["mirrored", "multiworker", "horovod", "auto"])
def test_a_batch_that_does_not_divide_is_refused(backend: str, small_config: Path) -> None:
    with pytest.raises(ConfigError, match="expected a multiple of the number of replicas, which is 3"):
        plan(small_config, backend, 3)


def test_more_workers_than_gpus_are_refused(small_config: Path) -> None:
    with pytest.raises(BackendError, match="got 4, expected at most 2"):
        plan(small_config, "horovod", 4, TWO_GPUS)


def test_overrides_and_fresh_reach_the_training(small_config: Path) -> None:
    training = Training(("train",), small_config, ("train.steps=5",), fresh=True)
    assert training.argv("run.seed=2") == ("train", str(small_config), "train.steps=5", "run.seed=2", "--fresh")


def test_a_restart_goes_on_from_what_the_first_start_left_with_what_may_change(small_config: Path) -> None:
    training = Training(("train",), small_config, fresh=True, allowed_changes=("optimizer", "run.seed"))
    changes = ("--allow-change", "optimizer", "--allow-change", "run.seed")
    assert training.argv() == ("train", str(small_config), "--fresh", *changes)
    assert training.again().argv() == ("train", str(small_config), *changes)


def test_horovod_over_hosts(small_config: Path) -> None:
    training = Training(("train",), small_config)
    planned = plan_horovod(load_config(small_config), training, 8, CPU, hosts="a:4,b:4", ssh_port=2222)
    (process,) = planned.processes
    assert process.argv[:9] == ("/bin/horovodrun", "--gloo", "-np", "8", "-H", "a:4,b:4", "-p", "2222", "train")
    assert process.argv[-1] == "distribution.backend=horovod"


def test_horovod_over_hosts_with_too_few_slots(small_config: Path) -> None:
    with pytest.raises(BackendError, match="got 6 slots for 8 workers"):
        plan_horovod(load_config(small_config), Training(("train",), small_config), 8, CPU, hosts="a:4,b:2")


def test_launch_horovod_refuses_a_config_of_another_backend(small_config: Path) -> None:
    config = load_config(small_config, ["distribution.backend=mirrored"])
    with pytest.raises(BackendError, match="got mirrored, expected horovod or auto"):
        plan_horovod(config, Training(("train",), small_config), 2, CPU)


@pytest.mark.parametrize("hosts", ["a", "a:", ":4", "a:0", "a:x", "a:4,", "a:4,a:4", ""])
def test_hosts_that_cannot_be_read(hosts: str) -> None:
    with pytest.raises(UserError, match="--hosts"):
        parse_hosts(hosts)


def test_the_script_of_a_plan_runs_in_a_shell(small_config: Path) -> None:
    """What --dry-run prints, pasted: spaces and quotes survive, and all processes run at once."""
    # Written at once, so that the two processes cannot mix their words.
    program = """
import json, os, sys
sys.stdout.write(f"{json.loads(os.environ['TF_CONFIG'])['task']['index']} {sys.argv[2]}\\n")
"""
    training = Training((sys.executable, "-c", program), small_config, ("run.name=it's a name",))
    config = load_config(small_config, ["distribution.backend=multiworker"])
    script = plan_local(config, training, 2, CPU, PORTS[:2]).script()
    done = subprocess.run(["bash", "-c", f"{script}\nwait"], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == ["0 run.name=it's a name", "1 run.name=it's a name"]


def test_dry_run_prints_and_starts_nothing(small_config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["launch", "local", str(small_config), "--workers", "2", "--dry-run", "distribution.backend=multiworker"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(f"-m trainer train {small_config} distribution.backend=multiworker" in line for line in lines)
    assert not (tmp_path / "runs").exists()


def test_python_m_launch_reaches_the_same_verbs(small_config: Path) -> None:
    argv = [sys.executable, "-m", "launch", "local", str(small_config), "--dry-run"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "distribution.backend=single" in done.stdout
    assert "auto is single here: one worker" in done.stderr
