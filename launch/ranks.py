"""Signals to the ranks of `horovodrun`, on this machine and, over ssh, on others.

As a program, `python -m launch.ranks MARK SIGNAL`, it is what is started there; its exit code is 0 where a rank was reached.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable

from launch import processes

logger = logging.getLogger(__name__)

_NONE_REACHED = 4
_SSH_SECONDS = 30


def send(mark: str, number: int) -> bool:
    """Sends a signal to each rank of a launch on this machine. Whether it was sent to any."""
    return any([processes.send(pid, number) for pid in processes.horovod_ranks(mark)])


def send_over_ssh(hosts: Iterable[str], ssh_port: int | None, mark: str, number: int) -> bool:
    """Sends a signal to the ranks on the first of these machines that has some. Whether it was sent to any.

    One machine is enough: the ranks agree on what they were asked for.
    """
    program = [sys.executable, "-m", "launch.ranks", mark, str(number)]
    remote = f"cd {shlex.quote(os.getcwd())} && {shlex.join(program)}"
    port = [] if ssh_port is None else ["-p", str(ssh_port)]
    for host in hosts:
        # As horovodrun has it.
        options = ["-o", "PasswordAuthentication=no", "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=10"]
        command = ["ssh", *options, *port, host, remote]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SSH_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            logger.warning("The ranks on %s cannot be reached: %s", host, error)
            continue
        if done.returncode == 0:
            return True
        if done.returncode != _NONE_REACHED:
            logger.warning("The ranks on %s cannot be reached: %s", host, done.stderr.strip() or done.returncode)
    return False


if __name__ == "__main__":
    sys.exit(0 if send(sys.argv[1], int(sys.argv[2])) else _NONE_REACHED)
