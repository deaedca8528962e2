"""`launch slurm`: a script that sbatch takes, run here by a real bash, with programs in the place of Slurm's that record how
they were called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training import ROOT
from trainer.cli import main

ALL = (
    *("--gpus-per-node", "8", "--ranks-per-node", "4", "--cpus", "64", "--memory", "500G", "--time", "1-12:00:00"),
    *("--partition", "gpu", "--account", "me", "--name", "gang", "--grace-seconds", "222", "--sbatch=--constraint=a100|h100"),
    *("--sbatch=--exclusive", "--setup", "module load cuda", "--setup", 'source "$HOME/my env/bin/activate"'),
)

# srun runs what is in the file `behaviour` and records how it was called; scancel sends SIGTERM to the last one.
SRUN = """#!/bin/bash
echo "srun $*" >>calls
echo "$DRUMLINE_RANKS $(stat -c %a "$DRUMLINE_SECRET_FILE") $(wc -c <"$DRUMLINE_SECRET_FILE")" >>secrets
cat "$DRUMLINE_SECRET_FILE" >>tokens
echo $$ >pid
. ./behaviour
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >>calls
kill -TERM "$(cat pid)"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>calls
ls -A runs/demo >>left
"""


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    assert main(["-q", "launch", "slurm", "configs/demo.yaml", "--nodes", "4"]) == 0
    return capsys.readouterr().out


class Job:
    """A script at work in a folder of its own."""

    def __init__(self, folder: Path, script: str, behaviour: str) -> None:
        self.folder = folder
        binaries = folder / "bin"
        binaries.mkdir()
        for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)
        (folder / "behaviour").write_text(behaviour)
        (folder / "job.sh").write_text(script)
        environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
        # SIGTERM and SIGUSR1 go to the batch shell alone, as Slurm sends them with `B:`.
        self.process = subprocess.Popen(
            ["bash", "job.sh"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, calls: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.read("calls")) < calls or not (self.folder / "ready").exists():
            assert time.monotonic() < deadline, "the job has not come so far"
            time.sleep(0.02)

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def end(self) -> int:
        self.output, _ = self.process.communicate(timeout=20)
        return self.process.returncode


# The doctor is content; the worker waits until it is asked to stop, saves for a while, and leaves with 75.
SAVES_WHEN_ASKED = """
case "$*" in *doctor*) exit 0 ;; esac
trap 'sleep 0.3; exit 75' TERM
touch ready
while :; do sleep 0.05; done
"""


def test_each_node_runs_the_doctor_and_then_a_worker(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, "exit 0")
    assert job.end() == 0, job.output
    options = "--ntasks-per-node=1 --cpus-per-task=8 --kill-on-bad-exit=1"
    assert job.read("calls") == [
        f"srun {options} drumline doctor configs/demo.yaml --gang",
        f"srun {options} drumline launch worker configs/demo.yaml",
    ]


def test_a_job_that_was_stopped_is_queued_again(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, 'case "$*" in *doctor*) exit 0 ;; esac; exit 75')
    assert job.end() == 75
    assert job.read("calls")[-1] == "scontrol requeue 4711"


@pytest.mark.parametrize("code", [1, 2, 3, 70, 137])
def test_a_job_that_failed_stays_as_it_ended(tmp_path: Path, script: str, code: int) -> None:
    job = Job(tmp_path, script, f'case "$*" in *doctor*) exit 0 ;; esac; exit {code}')
    assert job.end() == code
    assert [call.split()[0] for call in job.read("calls")] == ["srun", "srun"]


def test_what_the_doctor_finds_ends_the_job(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, "exit 2")
    assert job.end() == 2
    assert len(job.read("calls")) == 1


def test_the_secret_is_its_owners_and_goes_with_the_job(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, 'case "$*" in *doctor*) exit 0 ;; esac; exit 75')
    job.end()
    assert job.read("secrets") == ["1 600 45"] * 2
    (token,) = set(job.read("tokens"))
    assert job.read("left") == [], "it is gone before the job is queued again"
    assert token not in script
    assert token not in job.output


def test_a_start_again_has_another_secret(tmp_path: Path, script: str) -> None:
    tokens = set()
    for attempt in ("first", "second"):
        (tmp_path / attempt).mkdir()
        job = Job(tmp_path / attempt, script, "exit 0")
        assert job.end() == 0
        tokens |= set(job.read("tokens"))
    assert len(tokens) == 2


def test_near_the_time_limit_the_workers_save_and_the_job_is_queued_again(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, SAVES_WHEN_ASKED)
    job.wait_for(2)
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 75, job.output
    assert job.read("calls")[2:] == ["scancel --signal=TERM 4711", "scontrol requeue 4711"]
    assert list((tmp_path / "runs/demo").iterdir()) == []


def test_a_job_that_is_cancelled_does_not_come_back(tmp_path: Path, script: str) -> None:
    job = Job(tmp_path, script, SAVES_WHEN_ASKED)
    job.wait_for(2)
    job.process.send_signal(signal.SIGTERM)
    os.kill(int(job.read("pid")[0]), signal.SIGTERM)  # Slurm's own doing
    assert job.end() == 75, job.output
    assert [call.split()[0] for call in job.read("calls")] == ["srun", "srun"]
    assert list((tmp_path / "runs/demo").iterdir()) == []


@pytest.mark.parametrize("options", [(), ALL])
def test_the_script_is_without_fault_for_bash_and_shellcheck(options: tuple[str, ...], tmp_path: Path) -> None:
    printed = launch("configs/demo.yaml", "--nodes", "4", *options, "optimizer.learning_rate=1e-3")
    path = tmp_path / "job.sh"
    path.write_text(printed)
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    # A setup line of the user's may name files that are not here.
    found = subprocess.run([shellcheck, "--exclude=SC1091", str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def launch(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "-q", "launch", "slurm", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_option_is_in_the_script() -> None:
    script = launch("configs/demo.yaml", "--nodes", "4", *ALL, "train.steps=10")
    options = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert options == [
        *("--job-name=gang", "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=64", "--mem=500G", "--gpus-per-node=8"),
        *("--time=1-12:00:00", "--partition=gpu", "--account=me", "--signal=B:USR1@222", "--open-mode=append", "--requeue"),
        *("--constraint=a100|h100", "--exclusive"),
    ]
    assert '\nmodule load cuda\nsource "$HOME/my env/bin/activate"\n' in script
    assert "DRUMLINE_RANKS=4" in script
    assert "srun --ntasks-per-node=1 --cpus-per-task=64 " in script
    assert "drumline launch worker configs/demo.yaml train.steps=10\n" in script


def test_words_are_quoted_for_the_shell(tmp_path: Path) -> None:
    config = tmp_path / "my config.yaml"
    config.write_text((ROOT / "configs/demo.yaml").read_text())
    script = launch(str(config), "--nodes", "2", "run.directory=$(touch hit); runs")
    job = Job(tmp_path, script, "exit 0")
    assert job.end() == 0, job.output
    assert not (tmp_path / "hit").exists()
    assert job.read("calls")[1].endswith(f"worker {config} run.directory=$(touch hit); runs")


def test_a_dry_run_prints_the_same() -> None:
    words = ("configs/demo.yaml", "--nodes", "2")
    assert launch(*words, "--dry-run") == launch(*words)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--nodes", "3"), "got 16, expected a multiple of the number of replicas, which is 3"),
        (("--nodes", "2", "distribution.backend=mirrored"), "got mirrored for 2 ranks on 2 nodes"),
        (("--nodes", "2", "distribution.backend=single"), "got single for 2 ranks on 2 nodes"),
        (("--nodes", "2", "--gpus-per-node", "2", "--ranks-per-node", "4"), "--ranks-per-node: got 4, expected at most 2"),
        (("--nodes", "2", "--partition", "a b"), "got 'a b', expected letters, digits and punctuation"),
        (("--nodes", "2", "--setup", "a\nb"), "expected one line"),
    ],
)
def test_what_cannot_work_is_refused(
    options: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["launch", "slurm", "configs/demo.yaml", *options]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.out == ""
