"""Config and machine -> the processes that make up a run. Pure: looks at no machine and starts nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from launch.surroundings import Surroundings
from trainer.config import Config, plan_batches
from trainer.errors import BackendError, UserError

Backend = Literal["single", "mirrored", "multiworker", "horovod"]


@dataclass(frozen=True)
class Machine:
    """What this machine has. `gpus` are names for CUDA_VISIBLE_DEVICES; `threads_are_set` means that the user chose how
    many threads TensorFlow shall have, and that we leave it at that."""

    num_cores: int
    gpus: tuple[str, ...] = ()
    horovodrun: str | None = None
    threads_are_set: bool = False


@dataclass(frozen=True)
class Seat:
    """Where a worker of a job is: the name under which the others reach it, and a free port there for each of its ranks.
    A port may be a word that stands for one, in what is only printed."""

    host: str
    ports: tuple[int | str, ...]


@dataclass(frozen=True)
class Process:
    """A process to start: `env` is set on top of the launcher's environment."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The line that starts it from a shell."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*assignments, shlex.join(self.argv)])


@dataclass(frozen=True)
class Plan:
    """The processes of a run. `reason` says why this backend, where the configuration left it open.

    `hosts` are the machines that `horovodrun` was given, with the ranks of each, in their order; none is this machine alone.
    """

    backend: Backend
    processes: tuple[Process, ...]
    num_workers: int
    reason: str | None = None
    hosts: tuple[tuple[str, int], ...] = ()
    ssh_port: int | None = None

    def host_of(self, rank: int) -> str:
        """The machine of a rank under `horovodrun`, which fills one after another."""
        for host, slots in self.hosts:
            if rank < slots:
                return host
            rank -= slots
        return "localhost"

    def script(self) -> str:
        """Shell lines that start the run as the launcher would: all but the last process in the background."""
        *others, last = (str(process) for process in self.processes)
        return "\n".join([*(f"{other} &" for other in others), last])


@dataclass(frozen=True)
class Training:
    """The training command: what a process runs, whoever starts it."""

    command: tuple[str, ...]
    config_path: Path
    overrides: tuple[str, ...] = ()
    fresh: bool = False
    allowed_changes: tuple[str, ...] = ()

    def argv(self, *overrides: str) -> tuple[str, ...]:
        fresh = ("--fresh",) if self.fresh else ()
        changes = (word for key in self.allowed_changes for word in ("--allow-change", key))
        return (*self.command, str(self.config_path), *self.overrides, *overrides, *fresh, *changes)

    def again(self) -> Training:
        """The command of a restart, which goes on from what the first start left."""
        return replace(self, fresh=False)


def plan_local(config: Config, training: Training, num_workers: int, machine: Machine, ports: Sequence[int]) -> Plan:
    """The processes of a run on this machine; `ports` are free ones, a worker each.

    Raises ConfigError where the batch does not divide, BackendError where the machine or the backend does not allow it.
    """
    backend, reason = _choose_backend(config, num_workers, machine)
    if backend == "single" and num_workers > 1:
        raise BackendError(
            f"distribution.backend: got single, which is one process, and {num_workers} workers; "
            "expected --workers 1, or backend mirrored, multiworker or horovod"
        )
    plan_batches(config.train, num_workers)
    _require_gpus(num_workers, machine)
    # `auto` is settled here, once, so that launcher and training cannot choose differently.
    overrides = (f"distribution.backend={backend}",) if reason else ()
    match backend:
        case "single":
            return Plan(backend, (Process("0", training.argv(*overrides)),), num_workers, reason)
        case "mirrored":
            replicas = f"distribution.num_replicas={num_workers}"
            return Plan(backend, (Process("0", training.argv(*overrides, replicas)),), num_workers, reason)
        case "multiworker":
            return Plan(backend, _multiworker(training.argv(*overrides), machine, ports), num_workers, reason)
        case "horovod":
            return Plan(backend, (_horovodrun(training.argv(*overrides), num_workers, machine),), num_workers, reason)


def plan_horovod(
    config: Config,
    training: Training,
    num_workers: int,
    machine: Machine,
    hosts: str | None = None,
    ssh_port: int | None = None,
) -> Plan:
    """One `horovodrun` over `hosts` (`a:4,b:4`; by default this machine alone).

    Raises as `plan_local` does, and UserError where `hosts` cannot be read.
    """
    slots = {} if hosts is None else parse_hosts(hosts)
    if hosts is None:
        _require_gpus(num_workers, machine)
    elif (num_slots := sum(slots.values())) < num_workers:
        raise BackendError(f"--hosts: got {num_slots} slots for {num_workers} workers, expected at least {num_workers}")
    return _over_hosts(config, training, num_workers, machine, tuple(slots.items()), ssh_port)


def plan_elastic(
    config: Config, training: Training, hosts: Sequence[tuple[str, int]], machine: Machine, ssh_port: int | None = None
) -> Plan:
    """One `horovodrun` with these machines and so many ranks on each. Raises as `plan_local` does."""
    num_workers = sum(num_ranks for _, num_ranks in hosts)
    # It would remember for an hour which machines answer.
    return _over_hosts(config, training, num_workers, machine, tuple(hosts), ssh_port, ("--disable-cache",))


def choose_worker_backend(config: Config, surroundings: Surroundings, machine: Machine) -> tuple[Backend, str | None]:
    """The backend of a worker's ranks, and why, where the configuration left it open.

    Raises ConfigError where the batch does not divide, BackendError where this machine or the backend does not allow it.
    """
    num_ranks, num_workers = surroundings.num_ranks, surroundings.num_workers
    backend, reason = _choose_backend(config, num_ranks, machine)
    if backend == "single" and num_ranks > 1:
        raise BackendError(
            f"distribution.backend: got single, which is one process, and {num_ranks} ranks; "
            "expected one worker with one rank, or backend multiworker or horovod"
        )
    if backend == "mirrored" and num_workers > 1:
        raise BackendError(
            f"distribution.backend: got mirrored, which is one machine's, and {num_workers} workers; "
            "expected one worker, or backend multiworker or horovod"
        )
    plan_batches(config.train, num_ranks)
    if machine.gpus and surroundings.ranks_per_worker > len(machine.gpus):
        raise BackendError(
            f"--ranks: got {surroundings.ranks_per_worker} ({surroundings.source}), expected at most {len(machine.gpus)}, a "
            "GPU of this machine each; set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
        )
    if backend == "horovod":
        _require_horovod(machine)
    return backend, reason


def plan_worker(
    config: Config,
    training: Training,
    surroundings: Surroundings,
    gang: Sequence[Seat],
    machine: Machine,
    store_address: str,
    interface: str,
    given: Collection[str] = (),
) -> Plan:
    """The ranks of one worker, named by their numbers in the whole.

    `store_address` is where Horovod's ranks ask for one another, `interface` the one that leads to the peers. Of the variables
    that tune, those that the user has `given` stay.

    Raises as `choose_worker_backend` does.
    """
    backend, reason = choose_worker_backend(config, surroundings, machine)
    argv = training.argv(*((f"distribution.backend={backend}",) if reason else ()))
    if backend == "mirrored":
        argv = (*argv, f"distribution.num_replicas={surroundings.ranks_per_worker}")
    here, processes = surroundings, []
    num_processes = here.ranks_per_worker if backend in ("multiworker", "horovod") else 1
    own_threads = {} if machine.threads_are_set else threads(machine.num_cores // num_processes)
    for local_rank in range(num_processes):
        env: dict[str, str] = {}
        if backend == "multiworker":
            env = {"TF_CONFIG": _tf_config(gang, here.first_rank + local_rank)}
        elif backend == "horovod":
            tuned = _horovod_tuning(config, interface)
            env = _horovod_rank(here, local_rank, store_address)
            env |= {name: value for name, value in tuned.items() if name not in given}
        if machine.gpus and num_processes > 1:
            env["CUDA_VISIBLE_DEVICES"] = machine.gpus[local_rank]
        processes.append(Process(str(here.first_rank + local_rank), argv, {**env, **own_threads}))
    return Plan(backend, tuple(processes), here.num_ranks, reason)


def _horovod_rank(here: Surroundings, local_rank: int, store_address: str) -> dict[str, str]:
    """What `horovodrun` sets for a rank (horovod.runner.gloo_run)."""
    store_host, _, store_port = store_address.rpartition(":")
    return {
        "HOROVOD_HOSTNAME": here.host,
        "HOROVOD_RANK": str(here.first_rank + local_rank),
        "HOROVOD_SIZE": str(here.num_ranks),
        "HOROVOD_LOCAL_RANK": str(local_rank),
        "HOROVOD_LOCAL_SIZE": str(here.ranks_per_worker),
        "HOROVOD_CROSS_RANK": str(here.index),
        "HOROVOD_CROSS_SIZE": str(here.num_workers),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": store_host,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": store_port,
    }


def _horovod_tuning(config: Config, interface: str) -> dict[str, str]:
    # Machines do not read TensorFlow from their disks equally fast; Gloo's own 30 s would be short for the slowest.
    timeout = str(max(30, round(config.distribution.timeout_seconds)))
    return {
        "HOROVOD_GLOO_IFACE": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "HOROVOD_GLOO_TIMEOUT_SECONDS": timeout,
    }


def _tf_config(gang: Sequence[Seat], rank: int) -> str:
    """As in tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable."""
    workers = [f"[{seat.host}]:{port}" if ":" in seat.host else f"{seat.host}:{port}" for seat in gang for port in seat.ports]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})


def _over_hosts(
    config: Config,
    training: Training,
    num_workers: int,
    machine: Machine,
    hosts: tuple[tuple[str, int], ...],
    ssh_port: int | None,
    options: tuple[str, ...] = (),
) -> Plan:
    if config.distribution.backend not in ("auto", "horovod"):
        raise BackendError(
            f"distribution.backend: got {config.distribution.backend}, expected horovod or auto; "
            "add distribution.backend=horovod to train with Horovod all the same"
        )
    plan_batches(config.train, num_workers)
    reason = "asked for by `launch horovod`" if config.distribution.backend == "auto" else None
    overrides = ("distribution.backend=horovod",) if reason else ()
    listed = ",".join(f"{host}:{slots}" for host, slots in hosts)
    options = (*options, *(("-H", listed) if hosts else ()), *(("-p", str(ssh_port)) if ssh_port else ()))
    horovodrun = _horovodrun(training.argv(*overrides), num_workers, machine, options)
    return Plan("horovod", (horovodrun,), num_workers, reason, hosts, ssh_port)


def parse_hosts(text: str) -> dict[str, int]:
    """`a:4,b:4` as the number of slots by host. Raises UserError."""
    slots: dict[str, int] = {}
    for part in text.split(","):
        add_host(slots, part, "--hosts", least=1)
    return slots


def add_host(slots: dict[str, int], text: str, source: str, least: int) -> None:
    """Adds `a:4` to the number of slots by host; `source` is what a UserError names."""
    host, _, number = text.partition(":")
    if not host or " " in host or not number.isdecimal() or int(number) < least:
        raise UserError(f"{source}: got {text!r}, expected HOST:SLOTS, as in a:4")
    if host in slots:
        raise UserError(f"{source}: {host} is given twice")
    slots[host] = int(number)


def _choose_backend(config: Config, num_workers: int, machine: Machine) -> tuple[Backend, str | None]:
    if config.distribution.backend != "auto":
        return config.distribution.backend, None
    if num_workers == 1:
        return "single", "one worker"
    if machine.horovodrun:
        return "horovod", f"{num_workers} workers, and Horovod is installed"
    return "multiworker", f"{num_workers} workers, and Horovod is not installed"


def _require_gpus(num_workers: int, machine: Machine) -> None:
    if machine.gpus and num_workers > len(machine.gpus):
        raise BackendError(
            f"--workers: got {num_workers}, expected at most {len(machine.gpus)}, a GPU of this machine each; "
            "set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
        )


def _multiworker(argv: tuple[str, ...], machine: Machine, ports: Sequence[int]) -> tuple[Process, ...]:
    gang, processes = [Seat("127.0.0.1", tuple(ports))], []
    for rank in range(len(ports)):
        device = {"CUDA_VISIBLE_DEVICES": machine.gpus[rank]} if machine.gpus else {}
        env = {"TF_CONFIG": _tf_config(gang, rank), **device, **_share_of_cores(len(ports), machine)}
        processes.append(Process(str(rank), argv, env))
    return tuple(processes)


def _horovodrun(argv: tuple[str, ...], num_workers: int, machine: Machine, options: tuple[str, ...] = ()) -> Process:
    """Cores are left alone: Horovod's ranks divide those of whichever machine they are on among themselves."""
    return Process("horovodrun", (_require_horovod(machine), "--gloo", "-np", str(num_workers), *options, *argv))


def _require_horovod(machine: Machine) -> str:
    if machine.horovodrun is None:
        raise BackendError(
            "distribution.backend: got horovod, which is not installed in this environment; "
            "run `make horovod`, or take another backend"
        )
    return machine.horovodrun


def _share_of_cores(num_workers: int, machine: Machine) -> dict[str, str]:
    """This machine's cores, divided: otherwise each worker would start threads for all of them."""
    if num_workers == 1 or machine.threads_are_set:
        return {}
    return threads(machine.num_cores // num_workers)


def threads(num_cores: int) -> dict[str, str]:
    """TensorFlow reads both variables by itself (tensorflow/core/common_runtime/process_util.cc)."""
    return dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), str(max(1, num_cores)))
