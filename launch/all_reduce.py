"""The all-reduce of `drumline doctor`: starts the probe as the ranks of a training would be, and reads what it measured."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from launch import horovod, local, plan
from launch.machine import free_ports
from launch.plan import Machine, Training
from launch.requests import Requests
from trainer.config import Config
from trainer.errors import BackendError, HangDetected, Stopped, UserError

_PROBE = ("-m", "trainer.distribution.probe")
# Ranks that were asked to stop and do not are ended after so long.
_PATIENCE_SECONDS = 5.0
# For Python and TensorFlow to start, and for the watchdogs of the ranks, who know more, to speak first.
_START_SECONDS = 120.0
_SHOWN_LINES = 30
_PHASE = re.compile(r"^\[(\d+)\] probe: (.*)$")
_COMPLAINT = re.compile(r"^(?:\[\d+\] )?drumline: (.*)$")
_HANG = re.compile(rf"^(?:\[\d+\] )?(?:\d\d:\d\d:\d\d )?(.*); leaving with exit code {HangDetected.exit_code}$")

Start = Callable[[Training, Requests], int]


@dataclass(frozen=True)
class Measurement:
    """What the probe found. `clock_offsets_seconds` are those of the processes' clocks against the first one's."""

    backend: str
    library: str
    replicas: int
    bytes: int
    seconds: float
    bus_bytes_per_second: float
    clock_offsets_seconds: tuple[float, ...]


def measure(
    path: Path, overrides: Sequence[str], start: Start, ranks: range, *, wait_seconds: float, timeout_seconds: float
) -> Measurement:
    """Has `start` run the probe, of which this machine has these ranks. They may be waited for, and then have twice the
    timeout: to connect, and for the first all-reduce.

    Raises UserError where it fails, HangDetected and Stopped where it may go well another time.
    """
    said = io.StringIO()
    deadline = _Deadline(said, wait_seconds + _START_SECONDS, 2 * timeout_seconds + _PATIENCE_SECONDS)
    with tempfile.TemporaryDirectory() as folder, deadline:
        result = Path(folder) / "result.json"
        training = Training((sys.executable, *_PROBE, "--result", str(result)), path, tuple(overrides))
        with redirect_stdout(said), redirect_stderr(said):
            exit_code = start(training, deadline)
        content = json.loads(result.read_bytes()) if result.exists() else None
    if content is not None and exit_code == 0:
        offsets = tuple(content.pop("clock_offsets_seconds"))
        known = {name: content[name] for name in Measurement.__dataclass_fields__ if name in content}
        return Measurement(**known, clock_offsets_seconds=offsets)
    lines = said.getvalue().splitlines()
    for line in lines[-_SHOWN_LINES:]:
        print(f"    {line}", file=sys.stderr)
    reason = "it did not end in time" if deadline.is_over else _reason(lines, exit_code)
    message = f"{reason}; {_whereabouts(lines, ranks)}"
    if exit_code == HangDetected.exit_code or deadline.is_over:
        raise HangDetected(
            f"{message}; see that the processes of all ranks run, that no machine is overloaded, and that machines let each "
            "other's connections through on all ports"
        )
    if exit_code == Stopped.exit_code:
        raise Stopped(f"{message}; start it again")
    raise BackendError(f"{message}; what the ranks said is on stderr")


def with_any_batch(config: Config, num_replicas: int) -> Config:
    """The configuration with a batch that divides: whether its own does is another question."""
    train = config.train.model_copy(update={"global_batch_size": num_replicas, "micro_batch_size": None})
    return config.model_copy(update={"train": train})


def on_this_machine(config: Config, num_workers: int, machine: Machine) -> Start:
    """Starts the ranks as `drumline launch local` would."""

    def start(training: Training, requests: Requests) -> int:
        planned = plan.plan_local(with_any_batch(config, num_workers), training, num_workers, machine, free_ports(num_workers))
        try:
            if planned.backend == "horovod":
                return horovod.run(planned, requests).exit_code
            return local.run(planned.processes, requests)
        except OSError as error:
            raise UserError(f"the ranks cannot be started: {error}") from error

    return start


class _Deadline(Requests):
    """Asks for a stop when the time is over, and a little later for the end. From the first word of a rank's in `said` on
    there are `working_seconds` at most."""

    def __init__(self, said: io.StringIO, starting_seconds: float, working_seconds: float) -> None:
        super().__init__()
        self._said, self._working_seconds = said, working_seconds
        self._due = time.monotonic() + starting_seconds
        self._has_begun = False
        self.is_over = False

    def take(self) -> list[int]:
        now = time.monotonic()
        if not self._has_begun and "] probe: " in self._said.getvalue():
            self._has_begun, self._due = True, min(self._due, now + self._working_seconds)
        if now < self._due:
            return super().take()
        self.is_over, self._due = True, now + _PATIENCE_SECONDS
        return [*super().take(), signal.SIGTERM]


def _reason(lines: Sequence[str], exit_code: int) -> str:
    for pattern in (_COMPLAINT, _HANG):
        for line in lines:
            if match := pattern.match(line):
                return match[1]
    last = next((line for line in reversed(lines) if line.strip() and not _PHASE.match(line)), "it said nothing")
    return f"exit code {exit_code}: {last.strip()}"


def _whereabouts(lines: Sequence[str], ranks: range) -> str:
    """What each rank of this machine was at."""
    places = {int(match[1]): match[2] for line in lines if (match := _PHASE.match(line))}
    told = (f"rank {rank} {f'was at: {places[rank]}' if rank in places else 'was not heard of'}" for rank in ranks)
    return ", ".join(told)
