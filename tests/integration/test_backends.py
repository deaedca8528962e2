"""One configuration gives the same losses on every backend, however the batch falls on replicas and micro-batches."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

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
from trainer.config import Config

TOLERANCE = 1e-5
NARROW_WIRE, NARROW_WIRE_TOLERANCE = "float16-wire", 1e-2

# What may not depend on the backend, and the variant that it is compared with under `single`.
VARIANTS: dict[str, tuple[Mapping[str, Mapping[str, Any]], str]] = {
    "whole": ({}, "whole"),
    "accumulated": ({"train": {"micro_batch_size": 4}}, "whole"),
    "unequal": ({"data": {"pack": False}}, "unequal"),
    "unequal-accumulated": ({"data": {"pack": False}, "train": {"micro_batch_size": 4}}, "unequal"),
    "dropout": ({"model": {"dropout": 0.1}}, "dropout"),
    "dropout-accumulated": ({"model": {"dropout": 0.1}, "train": {"micro_batch_size": 4}}, "dropout"),
    "dropout-accumulated-xla": (
        {"model": {"dropout": 0.1}, "train": {"micro_batch_size": 4, "compile": "xla"}},
        "dropout",
    ),
}
DRIVER = str(ROOT / "tests" / "integration" / "train_several.py")
MIRRORED_DRIVER = str(ROOT / "tests" / "integration" / "train_mirrored.py")

Runs = Mapping[str, Path]


@pytest.fixture(scope="module")
def single(prepared: Path) -> Runs:
    """The runs that the others are compared with, in a process that has one device."""
    configs = variants(prepared, "single")
    checked(run_command([sys.executable, DRIVER, *write_configs(prepared, configs)]))
    return paths(configs)


@pytest.mark.usefixtures("tensorflow")
def test_losses_are_the_same_with_one_replica_two_replicas_and_micro_batches(prepared: Path) -> None:
    """In one process, with everything at once that could make them differ: padding, dropout, and accumulation."""
    from trainer.loop import train

    sections: dict[str, Mapping[str, Any]] = {"data": {"pack": False}, "model": {"dropout": 0.1}}
    accumulated = {"train": {"micro_batch_size": 4}}
    reference = training_config(prepared, "quick", **sections)
    mirrored = {"distribution": {"backend": "mirrored", "num_replicas": 2}}
    others = {
        "2 x 4": training_config(prepared, "quick-accumulated", **sections, **accumulated),
        "2 x 2 on 2 replicas": training_config(prepared, "quick-mirrored", **sections, **accumulated, **mirrored),
    }
    train(reference)
    for label, config in others.items():
        train(config)
        difference = largest_difference(train_losses(run_path(config)), train_losses(run_path(reference)))
        print(f"\nlargest relative difference of 20 losses, {label} from 1 x 8: {difference:.1e}")
        assert difference <= TOLERANCE
        assert ledger_hash(run_path(config)) == ledger_hash(run_path(reference))


@pytest.mark.slow
def test_accumulating_micro_batches_changes_no_loss(single: Runs) -> None:
    compare("single", single, single)


@pytest.mark.processes
def test_two_lanes_have_the_losses_of_one(prepared: Path) -> None:
    """As cores count the threads that TensorFlow is given: the machine may have another number of them."""
    changes: dict[str, Mapping[str, Any]] = {
        "data": {"pack": False},
        "model": {"dropout": 0.1},
        "train": {"micro_batch_size": 4},
    }
    runs = []
    for num_lanes in (1, 2):
        config = training_config(prepared, f"lanes-{num_lanes}", **changes)
        command = [str(BIN / "drumline"), "train", *write_configs(prepared, [config])]
        printed = checked(run_command(command, environment(TF_NUM_INTRAOP_THREADS=str(num_lanes))))
        assert ("lanes: 2, each of which computes 2 sequences" in printed.stdout + printed.stderr) == (num_lanes == 2)
        runs.append(run_path(config))
    one, two = runs
    assert largest_difference(train_losses(two), train_losses(one)) <= TOLERANCE
    assert largest_difference(validation_losses(two), validation_losses(one)) <= TOLERANCE
    assert ledger_hash(two) == ledger_hash(one)


@pytest.mark.slow
def test_two_mirrored_replicas_have_the_losses_of_one(prepared: Path, single: Runs) -> None:
    configs = variants(prepared, "mirrored", num_replicas=2)
    checked(run_command([sys.executable, MIRRORED_DRIVER, *write_configs(prepared, configs)]))
    compare("mirrored", paths(configs), single)
    compare_narrow_wire(prepared, "mirrored", single)


@pytest.mark.processes
def test_two_horovod_ranks_have_the_losses_of_one_process(prepared: Path, single: Runs) -> None:
    configs = variants(prepared, "horovod")
    files = write_configs(prepared, configs)
    horovodrun = [str(BIN / "horovodrun"), "-np", "2"]
    checked(run_command([*horovodrun, str(BIN / "drumline"), "train", files[0]]))
    checked(run_command([*horovodrun, sys.executable, DRIVER, *files[1:]]))
    compare("horovod", paths(configs), single)
    compare_narrow_wire(prepared, "horovod", single)


@pytest.mark.processes
def test_two_horovod_ranks_have_them_over_gloo_too(prepared: Path, single: Runs) -> None:
    """As ranks of several machines would; those of the test above are on one, and share memory."""
    configs = {config.run.name: config for config in variants(prepared, "horovod", name="gloo", shared_memory=False)}
    chosen = [configs["gloo-whole"], configs[f"gloo-{NARROW_WIRE}"]]
    command = [str(BIN / "horovodrun"), "-np", "2", sys.executable, DRIVER, *write_configs(prepared, chosen)]
    checked(run_command(command))
    compare("gloo", {"whole": run_path(chosen[0])}, single)
    compare_narrow_wire(prepared, "gloo", single)


@pytest.mark.processes
def test_two_multiworker_processes_have_the_losses_of_one(prepared: Path, single: Runs) -> None:
    """A process can join a cluster of TensorFlow's once: each variant has processes of its own, so there are fewer."""
    configs = variants(prepared, "multiworker")
    chosen = {config.run.name.removeprefix("multiworker-"): config for config in configs}
    files = dict(zip(chosen, write_configs(prepared, configs), strict=True))
    for name in ("whole", "dropout-accumulated-xla", NARROW_WIRE):
        checked(run_command([str(BIN / "drumline"), "launch", "local", files[name], "--workers", "2"]))
    run_cluster([str(BIN / "drumline"), "train", files["unequal-accumulated"]])
    names = ("whole", "dropout-accumulated-xla", "unequal-accumulated")
    compare("multiworker", {name: run_path(chosen[name]) for name in names}, single)
    compare_narrow_wire(prepared, "multiworker", single)


@pytest.mark.processes
def test_validation_losses_are_the_same_on_every_backend(prepared: Path, single: Runs) -> None:
    """Whatever runs of the tests above there are."""
    reference = validation_losses(single["whole"])
    assert list(reference) == [10, 20]
    for label in ("mirrored", "horovod", "multiworker"):
        path = prepared / "runs" / f"{label}-whole"
        if path.exists():
            assert largest_difference(validation_losses(path), reference) <= TOLERANCE


def variants(directory: Path, backend: str, name: str | None = None, **distribution: Any) -> list[Config]:
    settings = {"distribution": {"backend": backend, **distribution}}
    label = name or backend
    configs = [
        training_config(directory, f"{label}-{each}", **sections, **settings) for each, (sections, _) in VARIANTS.items()
    ]
    if backend != "single":
        settings["distribution"]["wire_precision"] = "float16"
        configs.append(training_config(directory, f"{label}-{NARROW_WIRE}", **settings))
    return configs


def write_configs(directory: Path, configs: list[Config]) -> list[str]:
    return [str(write_config(config, directory / f"{config.run.name}.yaml")) for config in configs]


def paths(configs: list[Config]) -> Runs:
    return {name: run_path(config) for name, config in zip(VARIANTS, configs, strict=False)}


def compare(label: str, runs: Runs, single: Runs) -> None:
    """Holds each variant against its reference, and says how far they are apart."""
    differences = {}
    for name in runs:
        _, reference = VARIANTS[name]
        losses = train_losses(runs[name])
        assert list(losses) == list(range(1, 21))
        differences[name] = largest_difference(losses, train_losses(single[reference]))
        assert ledger_hash(runs[name]) == ledger_hash(single[reference]), f"{label}: {name}: other samples"
    told = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    print(f"\nlargest relative difference of 20 losses, {label} from single: {told}")
    assert max(differences.values()) <= TOLERANCE


def compare_narrow_wire(directory: Path, backend: str, single: Runs) -> None:
    """Gradients that travel as float16 change the losses a little."""
    narrow = train_losses(directory / "runs" / f"{backend}-{NARROW_WIRE}")
    difference = largest_difference(narrow, train_losses(single["whole"]))
    print(f"largest relative difference of 20 losses, {backend} with a float16 wire from single: {difference:.1e}")
    assert 0 < difference <= NARROW_WIRE_TOLERANCE


def validation_losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in json_lines(run / "metrics.jsonl") if line["split"] == "validation"}


def run_cluster(command: list[str], num_workers: int = 2) -> None:
    """Starts the workers of one TensorFlow cluster by hand, as a user without our launcher would, and waits for all."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(num_workers)]
        workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    started = []
    for index in range(num_workers):
        description = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        env = environment(TF_CONFIG=json.dumps(description), TF_NUM_INTRAOP_THREADS="1")
        started.append(
            subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        for process in started:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
