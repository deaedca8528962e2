"""The run that is resumed is the run that was stopped, whether it was asked to stop or killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training import (
    BIN,
    ROOT,
    checked,
    environment,
    json_lines,
    largest_difference,
    ledger_hash,
    run_command,
    run_path,
    train_losses,
    training_config,
    write_config,
)
from trainer.checkpoint import CheckpointInfo, list_checkpoints, read_checkpoint, verify_checkpoint
from trainer.config import Config

NUM_STEPS = 40
TRAIN = [str(BIN / "drumline"), "train"]


def forty_steps(directory: Path, name: str, backend: str = "single", every: int = 4) -> Config:
    """Slow enough a run, some tens of milliseconds a step, that it can be stopped in the middle."""
    distribution = {"backend": backend} | ({"num_replicas": 2} if backend == "mirrored" else {})
    return training_config(
        directory,
        name,
        model={"width": 128, "dropout": 0.1},
        train={"steps": NUM_STEPS, "micro_batch_size": 4, "steps_per_loop": 3, "compile": "auto"},
        distribution=distribution,
        evaluation={"every": 8, "batches": 1},
        checkpoint={"every": every, "keep_last": 3},
    )


@pytest.fixture(scope="module")
def straight(prepared: Path) -> Path:
    """Forty steps under `single`, without a stop."""
    config = forty_steps(prepared, "straight")
    checked(run_command([*TRAIN, str(write_config(config, prepared / "straight.yaml"))]))
    return run_path(config)


def test_what_a_kill_took_back_is_trained_again_to_the_last_bit(prepared: Path, tensorflow: ModuleType) -> None:
    """As after a kill between two checkpoints: metrics and ledger are ahead of the newest checkpoint."""
    from trainer.loop import train

    config = training_config(prepared, "taken-back", model={"dropout": 0.1})
    run = run_path(config)
    train(config)
    losses, rolling_hash = train_losses(run), ledger_hash(run)
    weights = read_checkpoint(run / "checkpoints" / "step-00000020").weights
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "split": "tr')  # a line that the kill cut off
    train(config)
    assert train_losses(run) == losses
    assert ledger_hash(run) == rolling_hash
    again = read_checkpoint(run / "checkpoints" / "step-00000020").weights
    assert all(weights[name].tobytes() == again[name].tobytes() for name in weights)
    charts = EventAccumulator(str(run / "tensorboard" / "train"), size_guidance={"scalars": 0})
    charts.Reload()
    assert [event.step for event in charts.Scalars("loss")] == list(losses)
    assert [event.value for event in charts.Scalars("loss")] == pytest.approx(list(losses.values()))
    train(config)  # the run has all of its steps: there is nothing to do
    assert train_losses(run) == losses
    assert [start["step"] for start in json.loads((run / "run.json").read_text())["starts"]] == [0, 10]


def test_a_signal_ends_training_after_a_checkpoint_of_the_step_it_has_come_to(prepared: Path, tensorflow: ModuleType) -> None:
    from trainer.errors import Stopped
    from trainer.loop import train

    train_section = {"steps": 5000, "steps_per_loop": 2}
    config = training_config(prepared, "signal", train=train_section, checkpoint={"every": 10_000})
    run = run_path(config)

    def send() -> None:
        while last_step(run) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # should it come too late, it must not end the tests
    try:
        threading.Thread(target=send, daemon=True).start()
        with pytest.raises(Stopped) as stopped:
            train(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Stopped.exit_code == 75
    assert [info.step for info in checkpoints(run)] == [last_step(run)]
    assert f"after step {last_step(run)}" in str(stopped.value)


@pytest.mark.processes
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_moments_and_resumed_every_bit_is_the_same(prepared: Path, straight: Path, seed: int) -> None:
    config = forty_steps(prepared, f"killed-{seed}")
    kill_at_random_moments([*TRAIN, write(config, prepared)], run_path(config), random.Random(seed))
    assert_same_run(run_path(config), straight)


@pytest.mark.processes
def test_two_ranks_killed_and_resumed_every_bit_is_the_same(prepared: Path) -> None:
    """Bits are compared between runs of one backend and world size: sums of two halves are rounded otherwise."""
    uncut, killed = (forty_steps(prepared, f"ranks-{name}", "horovod") for name in ("uncut", "killed"))
    horovodrun = [str(BIN / "horovodrun"), "-np", "2", *TRAIN]
    checked(run_command([*horovodrun, write(uncut, prepared)]))
    kill_at_random_moments([*horovodrun, write(killed, prepared)], run_path(killed), random.Random(4), num_kills=1)
    assert_same_run(run_path(killed), run_path(uncut))


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_where_it_is_and_exits_with_75(prepared: Path, straight: Path, number: signal.Signals) -> None:
    config = forty_steps(prepared, f"stopped-{number.name}", every=1000)
    stop_in_the_middle([*TRAIN, write(config, prepared)], run_path(config), number)
    checked(run_command([*TRAIN, write(config, prepared)]))
    assert_same_run(run_path(config), straight)


@pytest.mark.processes
@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
def test_stopped_on_two_ranks_and_resumed_on_one_the_losses_agree(prepared: Path, straight: Path, backend: str) -> None:
    config = forty_steps(prepared, f"two-then-one-{backend}", backend, every=1000)
    launch = [str(BIN / "drumline"), "launch", "local", write(config, prepared), "--workers", "2"]
    stop_in_the_middle(launch, run_path(config), signal.SIGTERM)
    checked(run_command([*TRAIN, write(config, prepared), "distribution.backend=single"]))
    difference = largest_difference(train_losses(run_path(config)), train_losses(straight))
    print(f"\n{backend}, stopped on 2 and resumed on 1: largest relative difference of 40 losses {difference:.1e}")
    assert difference <= 1e-5
    assert ledger_hash(run_path(config)) == ledger_hash(straight)
    world_sizes = [line["num_replicas"] for line in json_lines(run_path(config) / "ledger.jsonl") if "event" in line]
    assert world_sizes == [2, 1]


@pytest.mark.processes
def test_stopped_on_one_and_resumed_on_two_ranks_the_losses_agree(prepared: Path, straight: Path) -> None:
    config = forty_steps(prepared, "one-then-two", every=1000)
    stop_in_the_middle([*TRAIN, write(config, prepared)], run_path(config), signal.SIGTERM)
    horovodrun = [str(BIN / "horovodrun"), "-np", "2", *TRAIN]
    checked(run_command([*horovodrun, write(config, prepared), "distribution.backend=horovod"]))
    difference = largest_difference(train_losses(run_path(config)), train_losses(straight))
    print(f"\nstopped on 1 and resumed on 2: largest relative difference of 40 losses {difference:.1e}")
    assert difference <= 1e-5
    assert ledger_hash(run_path(config)) == ledger_hash(straight)


def write(config: Config, directory: Path) -> str:
    return str(write_config(config, directory / f"{config.run.name}.yaml"))


def assert_same_run(run: Path, reference: Path) -> None:
    """Losses equal to the last bit, each step once; the same samples; the same weights and moments."""
    assert train_losses(run) == train_losses(reference)
    assert list(train_losses(run)) == list(range(1, NUM_STEPS + 1))
    assert ledger_hash(run) == ledger_hash(reference)
    ours, theirs = (read_checkpoint(path / "checkpoints" / f"step-{NUM_STEPS:08d}") for path in (run, reference))
    assert ours.progress.ledger_hash == theirs.progress.ledger_hash == ledger_hash(run)
    for ours_saved, theirs_saved in ((ours.weights, theirs.weights), (ours.optimizer, theirs.optimizer)):
        assert ours_saved.keys() == theirs_saved.keys()
        assert all(ours_saved[name].tobytes() == theirs_saved[name].tobytes() for name in ours_saved)


def kill_at_random_moments(command: list[str], run: Path, generator: random.Random, num_kills: int = 3) -> None:
    """Starts a run as often as it takes; kills the first starts with SIGKILL, each after at least one step of its own."""
    for number in range(num_kills):
        saved = max((info.step for info in checkpoints(run)), default=0)
        if saved == NUM_STEPS:
            break
        process = start(command)
        try:
            wait_until(partial(has_gone_on, run, number + 1, saved), process)
            time.sleep(generator.uniform(0.0, 1.2))
        finally:
            kill_tree(process)
        steps = [info.step for info in checkpoints(run)]
        print(f"\nbegun at step {saved}, killed after step {last_step(run)}; checkpoints: {steps}")
        assert all(verify_checkpoint(info.path) is None for info in checkpoints(run))
    checked(run_command(command))


def stop_in_the_middle(command: list[str], run: Path, number: signal.Signals) -> None:
    """Sends a signal to a run on its way; it must save the step it has come to, and exit with 75."""
    process = start(command)
    try:
        wait_until(partial(has_come_beyond, run, 2), process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        kill_tree(process)
    assert process.returncode == 75, output
    saved = [info.step for info in checkpoints(run)]
    print(f"\n{number.name}: exit code {process.returncode} after step {saved}")
    assert saved == [last_step(run)] and saved[0] < NUM_STEPS
    assert re.search(rf"stopped after step {saved[0]}", output)
    assert "Traceback" not in output
    assert all(verify_checkpoint(info.path) is None for info in checkpoints(run))


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "it did not get that far"
        time.sleep(0.005)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kills a process and all below it at once, as a machine that loses its power would."""
    from launch.processes import descendants

    for pid in [process.pid, *descendants(process.pid)]:
        subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
    process.wait()


def has_gone_on(run: Path, num_starts: int, step: int) -> bool:
    """Whether a run has begun so many times, and has come beyond a step since."""
    history = run / "run.json"
    return history.exists() and len(json.loads(history.read_text())["starts"]) == num_starts and last_step(run) > step


def has_come_beyond(run: Path, step: int) -> bool:
    return last_step(run) > step


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, without a line that is still being written."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    steps = [int(match[1]) for line in lines if (match := re.match(rb'\{"step": (\d+),', line))]
    return max(steps, default=0)


def checkpoints(run: Path) -> list[CheckpointInfo]:
    return list_checkpoints(run / "checkpoints")
