"""Searches as users start them: interrupted and gone on with, failing, given up early, shared by two processes."""

from __future__ import annotations

import csv
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.machine import free_ports
from tests.integration.test_documentation import wait_for_tags
from tests.integration.test_tasks import BAD, GOOD, task_config, write_records
from tests.training import BIN, ROOT, checked, environment, json_lines, run_command, run_python, write_config
from trainer.config_io import load_config

pytestmark = pytest.mark.processes

STEPS = 60
SECONDS = 300.0
GRID = {"optimizer.learning_rate": {"values": [1e-4, 1e-1]}, "model.width": {"values": [8, 16]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store of sixty records of two classes, and the configuration of a run on them."""
    from trainer.data.prepare import prepare

    path = tmp_path_factory.mktemp("search")
    texts = [
        {"text": f"{text} {number}", "label": label}
        for number in range(6)
        for label, each in (("good", GOOD), ("bad", BAD))
        for text in each
    ]
    write_records(path / "records.jsonl", texts)
    config = task_config(path, "classification", {"family": "bag_of_embeddings", "width": 8}, STEPS, batch=4)
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={"steps_per_loop": 1}),
            "evaluation": config.evaluation.model_copy(update={"every": 10}),
        }
    )
    prepare(config, num_processes=1)
    write_config(config, path / "run.yaml")
    return path


def write_search(folder: Path, name: str, **settings: Any) -> Path:
    values = {"name": name, "directory": str(folder / "runs"), "config": str(folder / "run.yaml"), "metric": "accuracy"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values | settings))
    return path


def start(path: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "search", str(path)],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(path: Path, number: int, when: Callable[[], bool]) -> int:
    """Starts a search and sends it a signal as soon as something is so; its exit code."""
    search = start(path)
    deadline = time.monotonic() + SECONDS
    while not when():
        assert search.poll() is None, search.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    search.send_signal(number)
    search.communicate(timeout=SECONDS)
    return search.returncode


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> Path:
    """The folder of a grid of 2 x 2 with 2 folds, asked to stop in its second run and killed in its sixth."""
    path, runs = write_search(folder, "grid", method="grid", folds=2, parameters=GRID), folder / "runs/grid"
    # In the middle of a run: it has taken steps, and has more to take.
    begun = (runs / "trial-0000/fold-1/metrics.jsonl", runs / "trial-0002/fold-1/metrics.jsonl")
    assert interrupt(path, signal.SIGTERM, lambda: begun[0].exists() and begun[0].stat().st_size > 0) == 75
    assert interrupt(path, signal.SIGKILL, lambda: begun[1].exists() and begun[1].stat().st_size > 0) == -signal.SIGKILL
    finished = checked(run_python("-m", "trainer", "search", path, timeout=SECONDS))
    assert "4 of 4 trials: 4 done" in finished.stdout
    return runs


def test_an_interrupted_search_runs_each_run_once(interrupted: Path) -> None:
    runs = sorted(path.parent for path in interrupted.glob("trial-*/fold-*/run.json"))
    assert [f"{run.parent.name}/{run.name}" for run in runs] == [
        f"trial-{trial:04d}/fold-{fold}" for trial in range(4) for fold in range(2)
    ]
    starts = {run: json.loads((run / "run.json").read_text())["starts"] for run in runs}
    again = [run for run in runs if len(starts[run]) > 1]
    # Those two alone that were interrupted, each of which went on; what was done was not started again.
    assert len(again) <= 2
    assert all(f"{run.parent.name}/{run.name}" in ("trial-0000/fold-1", "trial-0002/fold-1") for run in again)
    for run in runs:
        steps = [line["step"] for line in json_lines(run / "metrics.jsonl") if line["split"] == "validation"]
        assert steps == list(range(10, STEPS + 1, 10))


def test_scores_are_means_over_folds_and_the_best_trains_as_it_stands(interrupted: Path) -> None:
    rows = results(interrupted)
    for number, row in enumerate(rows):
        folds = [interrupted / f"trial-{number:04d}/fold-{fold}" for fold in range(2)]
        last = [[line for line in json_lines(fold / "metrics.jsonl") if "accuracy" in line][-1] for fold in folds]
        scores = [line["accuracy"] for line in last]
        assert [line["num_samples"] for line in last] == [30, 30]
        assert float(row["accuracy"]) == pytest.approx(sum(scores) / 2)
        assert float(row["spread"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    best = max(rows, key=lambda row: float(row["accuracy"]))
    config = load_config(interrupted / "best.yaml")
    assert config.optimizer.learning_rate == float(best["optimizer.learning_rate"]) == 0.1
    assert (config.model.width, config.data.folds) == (int(best["model.width"]), None)
    checked(run_python("-m", "trainer", "train", interrupted / "best.yaml"))
    last = json_lines(interrupted / "best/metrics.jsonl")[-1]
    assert last["accuracy"] >= float(best["accuracy"])


def test_pages_show_the_trials(interrupted: Path) -> None:
    page = (interrupted / "results.html").read_text()
    assert "4 trials are done" in page
    assert page.count("Plotly.newPlot") == 2
    assert "optimizer.learning_rate" in page
    port = free_ports(1)[0]
    server = subprocess.Popen(
        [BIN / "tensorboard", "--logdir", interrupted / "tensorboard", "--port", str(port)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/data/plugin"
        wait_for_tags(server, f"{address}/scalars/tags", [f"trial-{number:04d}" for number in range(4)])
        groups = hparams_sessions(f"{address}/hparams")
    finally:
        server.kill()
        server.wait()
    assert len(groups) == 4
    assert {group["hparams"]["model.width"] for group in groups} == {8.0, 16.0}
    metrics = {value["name"]["tag"]: value["value"] for value in groups[0]["metricValues"]}
    assert metrics["accuracy"] == pytest.approx(float(results(interrupted)[0]["accuracy"]))


def hparams_sessions(address: str) -> list[dict[str, Any]]:
    """What TensorBoard's HParams page asks for, and is answered (tensorboard/plugins/hparams/http_api.md)."""
    experiment = post(f"{address}/experiment", {"experimentName": ""})
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"],
        "colParams": [{"metric": info["name"]} for info in experiment["metricInfos"]],
        "startIndex": 0,
        "sliceSize": 100,
    }
    return list(post(f"{address}/session_groups", request)["sessionGroups"])


def post(address: str, content: dict[str, Any]) -> Any:
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)


def test_another_search_of_the_same_name_is_refused(interrupted: Path) -> None:
    path = write_search(interrupted.parents[1], "grid", method="grid", folds=3, parameters=GRID)
    refused = run_python("-m", "trainer", "search", path)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith(
        "search grid: folds changed since it was begun; take another `name`, or put it back as it was"
    )


def test_failed_trials_are_recorded_with_their_reason_and_the_search_goes_on(folder: Path) -> None:
    parameters = {
        "optimizer.learning_rate": {"values": [1e-2, 1e38]},
        "train.micro_batch_size": {"values": [3, 2]},
        "divergence.max_rollbacks": {"values": [0]},
    }
    path = write_search(folder, "failing", method="grid", parallel=2, parameters=parameters)
    finished = checked(run_python("-m", "trainer", "search", path, timeout=SECONDS))
    assert "4 of 4 trials: 1 done, 3 failed" in finished.stdout
    rows = results(folder / "runs/failing")
    assert [row["state"] for row in rows] == ["failed", "done", "failed", "failed"]
    assert "got 3, expected a divisor of `global_batch_size`, which is 4" in rows[0]["reason"]
    assert rows[3]["reason"].startswith("run ended with exit code 3: drumline: step ")
    again = checked(run_python("-m", "trainer", "search", path, timeout=SECONDS))
    assert "trial 0" not in again.stderr


def test_trials_that_fall_behind_are_given_up(folder: Path) -> None:
    parameters = {"optimizer.learning_rate": {"values": [1e-2, 1e-9, 2e-2]}}
    pruning = {"kind": "median", "least_steps": 10, "startup_trials": 1}
    # A run that takes its time: each of its steps logs and saves.
    config = load_config(folder / "run.yaml", ["checkpoint.every=1", "logging.every=1", "train.steps=400"])
    write_config(config, folder / "slow.yaml")
    settings = {"metric": "loss", "pruning": pruning, "config": str(folder / "slow.yaml"), "parameters": parameters}
    path = write_search(folder, "pruned", method="grid", **settings)
    checked(run_python("-m", "trainer", "search", path, timeout=SECONDS))
    runs = folder / "runs/pruned"
    assert [row["state"] for row in results(runs)] == ["done", "given up", "done"]
    assert json_lines(runs / "trial-0001/run/metrics.jsonl")[-1]["step"] < 400


def test_a_trial_may_have_several_workers(folder: Path) -> None:
    parameters = {"optimizer.learning_rate": {"values": [1e-2]}, "distribution.backend": {"values": ["mirrored"]}}
    path = write_search(folder, "mirrored", method="grid", workers=2, parameters=parameters)
    checked(run_python("-m", "trainer", "search", path, timeout=SECONDS))
    starts = json.loads((folder / "runs/mirrored/trial-0000/run/run.json").read_text())["starts"]
    assert [(start["backend"], start["num_replicas"]) for start in starts] == [("mirrored", 2)]


def test_a_metric_that_is_not_computed_is_refused_before_anything_starts(folder: Path) -> None:
    path = write_search(folder, "unknown", method="grid", parameters=GRID, metric="bleu")
    refused = run_python("-m", "trainer", "search", path)
    assert refused.returncode == 2
    assert "metric: got 'bleu', expected what" in refused.stderr
    assert "loss, accuracy, macro_f1, auc" in refused.stderr


def test_a_range_test_suggests_a_rate_and_draws_it(folder: Path) -> None:
    config = load_config(folder / "run.yaml", [f"run.directory={folder / 'runs'}", "run.name=ranged"])
    path = write_config(config, folder / "ranged.yaml")
    arguments = ["-m", "trainer", "search", "--learning-rate-range", path, "--steps", "50", "--lowest", "1e-5"]
    told = checked(run_python(*arguments)).stdout
    rate = float(told.split("optimizer.learning_rate: ")[1].split(" is suggested")[0])
    assert 1e-4 < rate < 1.0
    run = folder / "runs/ranged-learning-rate-range"
    assert (run / "learning-rate-range.csv").read_text().startswith("learning_rate,smoothed_loss\n")
    assert "suggested" in (run / "learning-rate-range.html").read_text()


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database of a PostgreSQL of our own, which has a password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs or os.geteuid() != 0:
        pytest.skip("PostgreSQL's server is not installed (Debian's package postgresql), or we are not root")
    name = "postgres"
    try:
        pwd.getpwnam(name)
    except KeyError:
        pytest.skip("the user postgres, whom Debian's package makes, is missing")
    home = Path("/tmp") / f"drumline-postgresql-{os.getpid()}"
    home.mkdir()
    shutil.chown(home, name, name)
    password = home / "password"
    password.write_text("a-secret\n")
    shutil.chown(password, name, name)
    (port,) = free_ports(1)

    def run(*command: str) -> None:
        checked(run_command(["runuser", "-u", name, "--", *command], timeout=60))

    data, options = str(home / "data"), f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home}"
    run(str(programs[-1] / "initdb"), "-D", data, "-A", "scram-sha-256", f"--pwfile={password}")
    run(str(programs[-1] / "pg_ctl"), "-D", data, "-o", options, "-l", str(home / "log"), "-w", "start")
    try:
        yield f"postgresql+pg8000://{name}:a-secret@127.0.0.1:{port}/postgres"
    finally:
        run(str(programs[-1] / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(home)


def test_two_processes_share_the_trials_of_a_database(folder: Path, postgresql: str) -> None:
    path = write_search(
        folder, "shared", method="random", trials=6, storage_environment="SEARCH_STORAGE",
        parameters={"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
    )  # fmt: skip
    searches = [start(path, SEARCH_STORAGE=postgresql, TF_NUM_INTRAOP_THREADS="1") for _ in range(2)]
    said = [search.communicate(timeout=SECONDS) for search in searches]
    assert [search.returncode for search in searches] == [0, 0], said
    begun = [{int(number) for number in re.findall(r"trial (\d+): optimizer", errors)} for _, errors in said]
    assert not begun[0] & begun[1]
    assert begun[0] | begun[1] == set(range(6))
    assert all(len(each) >= 2 for each in begun)
    runs = sorted((folder / "runs/shared").glob("trial-*/run/run.json"))
    assert [len(json.loads(run.read_text())["starts"]) for run in runs] == [1] * 6
    written = [path for path in (folder / "runs/shared").rglob("*") if path.is_file()]
    assert not [path for path in written if b"a-secret" in path.read_bytes()]
    assert not [text for pair in said for text in pair if "a-secret" in text]
