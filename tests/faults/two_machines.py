"""Two machines with a rank each, on one machine: a network namespace each, with a cable between them that can be cut.

    two_machines.py CONFIG FOLDER BACKEND

Starts the ranks as one starts them by hand on two machines, `drumline launch worker` for Horovod and TF_CONFIG for
multiworker; cuts the second machine off when there is a file FOLDER/cut. Writes each machine's exit code to
FOLDER/exit-MACHINE; ends when both have ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.rehearsal.network import Link, Network
from tests.rehearsal.privacy import go_private
from tests.training import BIN

_PORT = 2222


def main(config: str, folder: Path, backend: str) -> None:
    go_private()
    network = Network()
    links = [network.connect() for _ in range(2)]
    secret = folder / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef")
    machines = [_start(config, backend, links, number, secret) for number in range(2)]
    ended: set[int] = set()
    is_cut = False
    while len(ended) < 2:
        if not is_cut and (folder / "cut").exists():
            network.cut(links[1])
            is_cut = True
        for number, machine in enumerate(machines):
            if number not in ended and machine.poll() is not None:
                ended.add(number)
                (folder / f"exit-{number}").write_text(str(machine.returncode))
        time.sleep(0.02)


def _start(config: str, backend: str, links: list[Link], number: int, secret: Path) -> subprocess.Popen[bytes]:
    addresses = [link.address for link in links]
    drumline = [str(BIN / "drumline")]
    environment = dict(os.environ)
    if backend == "horovod":
        place = ["--peers", ",".join(addresses), "--index", str(number), "--secret-file", str(secret)]
        command = [*drumline, "launch", "worker", config, *place]
    else:
        cluster = {"worker": [f"{address}:{_PORT}" for address in addresses]}
        environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}})
        command = [*drumline, "train", config]
    return subprocess.Popen(["ip", "netns", "exec", links[number].namespace, *command], env=environment)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
