"""A real Slurm on this machine: its controller, and two nodes that are daemons of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.training import environment

NODES = ("n1", "n2")
_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
_HOSTS = Path("/etc/hosts")
_CONTROLLER_PORT, _FIRST_NODE_PORT = 16_817, 17_001
# Cores and memory are what the jobs of the tests ask for, whatever the machine has.
_CONFIGURATION = """\
ClusterName=rehearsal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/controller.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/controller.log
SlurmdLogFile={directory}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def find_missing() -> str | None:
    """Why no Slurm can be had here; None where it can."""
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    return f"needs {', '.join(missing)}: apt-get install munge slurm-wlm" if missing else None


@dataclass(frozen=True)
class BatchSystem:
    """Slurm's commands. What jobs print is in `folder`, from which they are submitted."""

    directory: Path
    folder: Path

    def run(self, *command: str) -> str:
        variables = environment(SLURM_CONF=str(self.directory / "slurm.conf"))
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def submit(self, script: str) -> str:
        """The number of the new job."""
        (self.folder / "job.sh").write_text(script)
        return self.run("sbatch", "--parsable", "job.sh").strip()

    def state(self, job: str) -> str:
        match = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))
        assert match is not None
        return match[1]

    def output(self, job: str) -> str:
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def wait_until(self, condition: Callable[[], bool], job: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"job {job}: {self.state(job)}\n{self.output(job)}{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        return "".join(f"\n--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.directory.glob("*.log")))


@contextmanager
def batch_system(directory: Path, folder: Path) -> Iterator[BatchSystem]:
    """Its daemons run meanwhile; jobs that are left are cancelled. To be entered with mounts that nobody else sees: the names
    of the nodes go into /etc/hosts."""
    directory.mkdir()
    (directory / "state").mkdir()
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    last = _FIRST_NODE_PORT + len(NODES) - 1
    configuration = _CONFIGURATION.format(
        host=host, directory=directory, port=_CONTROLLER_PORT, first=_FIRST_NODE_PORT, last=last
    )
    (directory / "slurm.conf").write_text(configuration)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    hosts = directory / "hosts"
    hosts.write_text(f"{_HOSTS.read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
    subprocess.run(["mount", "--bind", str(hosts), str(_HOSTS)], check=True)
    munged = ["munged", "--foreground", "--force", f"--socket={directory}/munge.socket", f"--key-file={key}"]
    munged += [f"--{name}-file={directory}/munge.{name}" for name in ("pid", "log", "seed")]
    daemons = []
    try:
        for command in (munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            variables = environment(SLURM_CONF=str(directory / "slurm.conf"))
            daemons.append(subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1.0)
        system = BatchSystem(directory, folder)
        deadline = time.monotonic() + 30.0
        while system.run("sinfo", "--noheader", "--format=%T").split() != ["idle"]:
            assert time.monotonic() < deadline, system.logs()
            time.sleep(0.2)
        yield system
        system.run("scancel", "--user=root")
        while system.run("squeue", "--noheader"):
            assert time.monotonic() < deadline + 600.0, system.logs()
            time.sleep(0.2)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30.0)
        subprocess.run(["umount", str(_HOSTS)], check=True)
