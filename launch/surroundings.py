"""Where a worker stands: its number, its peers, its ranks, found in what Kubernetes, Slurm or the command line say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError

PEERS = "DRUMLINE_PEERS"
JOB = "DRUMLINE_JOB"
SECRET_FILE = "DRUMLINE_SECRET_FILE"
RANKS = "DRUMLINE_RANKS"
PORT = "DRUMLINE_PORT"

DEFAULT_PORT = 29400
_SHORTEST_SECRET = 16
_SCONTROL_SECONDS = 30


@dataclass(frozen=True)
class Flags:
    """What the command line says; it wins over the environment."""

    index: int | None = None
    peers: tuple[str, ...] | None = None
    ranks: int | None = None
    job: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Surroundings:
    """This worker's place in its job. `peers` are the host names of all workers, this one too, by number; `port` is that of
    worker 0's rendezvous; `source` says where the number comes from, for messages."""

    index: int
    peers: tuple[str, ...]
    ranks_per_worker: int
    job: str
    port: int
    source: str

    @property
    def num_workers(self) -> int:
        return len(self.peers)

    @property
    def num_ranks(self) -> int:
        return self.num_workers * self.ranks_per_worker

    @property
    def first_rank(self) -> int:
        return self.index * self.ranks_per_worker

    @property
    def host(self) -> str:
        """The name under which the others reach this worker."""
        return self.peers[self.index]


def find_surroundings(environment: Mapping[str, str], hostname: str, flags: Flags, num_gpus: int = 0) -> Surroundings:
    """This worker's place. `num_gpus` is how many ranks it has where nothing else says so. Raises UserError naming what is
    missing, or cannot be."""
    peers = _find_peers(environment, flags)
    index, source = _find_index(environment, hostname, flags, peers)
    if index >= len(peers):
        raise UserError(
            f"worker {index} ({source}): there are {len(peers)} peers, so numbers go from 0 to {len(peers) - 1}; "
            f"name all workers with --peers or {PEERS}"
        )
    on_slurm = environment.get("SLURM_JOB_ID")
    ranks = flags.ranks or _number(environment, RANKS, least=1) or _number(environment, "SLURM_GPUS_ON_NODE") or num_gpus or 1
    job = flags.job or environment.get(JOB) or on_slurm or "drumline"
    if not job.isprintable() or not job.isascii() or " " in job:
        raise UserError(f"the job's name (--job or {JOB}): got {job!r}, expected letters, digits and punctuation")
    port = flags.port or _number(environment, PORT, least=1)
    if port is None and on_slurm is not None:
        # Jobs that share a machine have different numbers.
        port = 20_000 + (_number(environment, "SLURM_JOB_ID") or 0) % 20_000
    port = port or DEFAULT_PORT
    if port > 65_535:
        raise UserError(f"the rendezvous's port (--port or {PORT}): got {port}, expected at most 65535")
    return Surroundings(index, peers, ranks, job, port, source)


def read_secret(environment: Mapping[str, str], path: Path | None) -> bytes:
    """The job's secret, of the file that `path` or DRUMLINE_SECRET_FILE names. Raises UserError."""
    named = path or (Path(environment[SECRET_FILE]) if environment.get(SECRET_FILE) else None)
    if named is None:
        raise UserError(
            f"no secret: expected --secret-file FILE or {SECRET_FILE}, the same bytes on every worker; "
            "make one with: (umask 077; head -c 32 /dev/urandom | base64 > FILE)"
        )
    try:
        secret = named.read_bytes().strip()
    except OSError as error:
        raise UserError(f"the secret in {named} cannot be read: {error.strerror}") from error
    if len(secret) < _SHORTEST_SECRET:
        raise UserError(f"the secret in {named}: got {len(secret)} bytes, expected at least {_SHORTEST_SECRET}")
    return secret


def read_variable(key: str, name: str | None) -> str | None:
    """The value of the environment variable that the configuration names in `key`. Raises UserError where it is not set."""
    if name is None:
        return None
    if not os.environ.get(name):
        raise UserError(f"{key}: the variable {name} is not set; expected what it stands for")
    return os.environ[name]


def _find_peers(environment: Mapping[str, str], flags: Flags) -> tuple[str, ...]:
    if flags.peers is not None:
        peers, source = flags.peers, "--peers"
    elif environment.get(PEERS):
        peers, source = tuple(name.strip() for name in environment[PEERS].split(",")), PEERS
    elif environment.get("SLURM_JOB_NODELIST"):
        peers, source = _expand(environment["SLURM_JOB_NODELIST"]), "SLURM_JOB_NODELIST"
    else:
        raise UserError(
            f"who the workers are is not known: expected --peers HOST,HOST,... or {PEERS}, the same on every worker, "
            "or a job of Slurm"
        )
    for name in peers:
        if not name or any(character.isspace() or character in ",/" for character in name):
            raise UserError(f"{source}: got {name!r} among {len(peers)} names, expected host names separated by commas")
    if len(set(peers)) < len(peers):
        twice = next(name for name in peers if peers.count(name) > 1)
        raise UserError(f"{source}: {twice} is given twice; each worker needs a name or an address of its own")
    return peers


def _find_index(environment: Mapping[str, str], hostname: str, flags: Flags, peers: tuple[str, ...]) -> tuple[int, str]:
    if flags.index is not None:
        return flags.index, "--index"
    for variable, source in (("JOB_COMPLETION_INDEX", "a Kubernetes Job"), ("SLURM_NODEID", "Slurm")):
        if (index := _number(environment, variable)) is not None:
            return index, f"{source}, {variable}"
    if len(peers) == 1:
        return 0, "the only worker"
    label = hostname.partition(".")[0]
    same = [index for index, name in enumerate(peers) if hostname == name or label == name.partition(".")[0]]
    if len(same) == 1:
        return same[0], f"the host name {hostname}"
    found = "not among" if not same else "more than once among"
    raise UserError(
        f"which worker this is, is not known: this host, {hostname}, is {found} the peers {', '.join(peers)}; "
        "expected --index N, JOB_COMPLETION_INDEX or SLURM_NODEID"
    )


def _number(environment: Mapping[str, str], variable: str, least: int = 0) -> int | None:
    """A whole number that the environment may have. Raises UserError where it is none."""
    text = environment.get(variable)
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise UserError(f"{variable}: got {text!r}, expected a whole number of at least {least}")
    return int(text)


def _expand(nodes: str) -> tuple[str, ...]:
    """`node[01-03]` as names, by the program of Slurm that is there for it. Raises UserError."""
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=_SCONTROL_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip()
        raise UserError(f"SLURM_JOB_NODELIST: {' '.join(command)} failed: {told}; give --peers instead") from error
    return tuple(done.stdout.split())
