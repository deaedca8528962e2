"""One container: its root file system, user, host name and processes, made by bubblewrap in a pod's network namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launch.processes import descendants
from tests.rehearsal.network import Link
from tests.rehearsal.volumes import Manifest, Volume
from tests.training import BIN, ROOT

# The image's user, which k8s/Dockerfile makes too.
_USER = 1000
_SHARED_MEMORY = 64 * 2**20  # what container runtimes give where the manifest says nothing
_FROM_THE_SYSTEM = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types", "ssl")
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\ndrumline:x:1000:1000::/drumline:/usr/sbin/nologin\n",
    "group": "root:x:0:\ndrumline:x:1000:\n",
    # Names come from the file `hosts` alone, which the cluster keeps: that is its DNS.
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "",
}


@dataclass(frozen=True)
class Image:
    """What stands in for the container image: this machine's /usr, this Python and this checkout's programs."""

    working_directory: str = "/drumline"
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    )

    def mounts(self) -> list[str]:
        """Options for bubblewrap."""
        options = [*_parents(Path("/etc/any")), "--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib64"):
            path = Path("/", name)
            if path.is_symlink():
                options += ["--symlink", os.readlink(path), str(path)]
            elif path.exists():
                options += ["--ro-bind", str(path), str(path)]
        for path in (Path(sys.base_prefix), Path(sys.prefix), ROOT / "trainer", ROOT / "launch"):
            if not path.is_relative_to("/usr"):
                options += [*_parents(path), "--ro-bind", str(path), str(path)]
        for name in _FROM_THE_SYSTEM:
            options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        return [*options, *_parents(Path(self.working_directory, "any"))]


@dataclass(frozen=True)
class Surroundings:
    """What the containers of a pod share."""

    hostname: str
    link: Link
    volumes: Mapping[str, Volume]
    etc: Path  # a folder with the file `hosts`
    cpus: Sequence[int]
    pod_security: Manifest
    image: Image


class Container:
    """A container that was started. `exit_code` is None while it runs; nothing of it is left afterwards."""

    def __init__(self, spec: Manifest, command: Sequence[str], environment: Mapping[str, str], around: Surroundings, log: Path):
        self.name: str = spec["name"]
        self.log = log
        status, told = os.pipe()
        argv = [
            # Whoever of these dies takes the next with it, and with the last, process 1 of its namespace, go all. bubblewrap's
            # own --die-with-parent is not enough: its process without privileges may not end one of another user.
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL"),
            *("ip", "netns", "exec", around.link.namespace),
            *("taskset", "--cpu-list", ",".join(map(str, around.cpus))),
            *("bwrap", *_isolation(around.hostname, told), *around.image.mounts(), *_files(spec, around)),
            *_variables({"HOSTNAME": around.hostname, **environment}),
            *("--chdir", spec.get("workingDir", around.image.working_directory)),
            *("--", *_credentials(spec, around.pod_security), *command),
        ]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv, env={"PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[told]
            )
        os.close(told)
        # Open until the end: bubblewrap has more to tell, and would die of a reader that has gone.
        self._status = os.fdopen(status)
        self._status.readline()
        # The number that process 1 has outside: that of the child of bubblewrap, which is the child of `unshare`. None where
        # it has ended already.
        self.process = next(iter(descendants(self._process.pid)[1:]), None)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """To process 1, as `kubectl delete` does. As everywhere, process 1 does not hear what it has no handler for."""
        if self.exit_code is None and self.process is not None:
            with suppress(ProcessLookupError):  # it has ended, and those around it are about to
                os.kill(self.process, number)

    def kill(self) -> None:
        """Ends all its processes at once: those of a process namespace go with process 1."""
        self.send(signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        if self.process is None:
            self._process.kill()
        self._process.wait()
        self._status.close()


def _isolation(hostname: str, status: int) -> list[str]:
    return [
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", hostname),
        *("--as-pid-1", "--json-status-fd", str(status), "--clearenv"),
        *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"),
    ]


def _files(spec: Manifest, around: Surroundings) -> list[str]:
    """The mounts of a container on top of its image's, in the order that makes them nest."""
    for name, content in _ETC.items():
        (around.etc / name).write_text(content)
    options = ["--proc", "/proc", "--dev", "/dev", "--ro-bind", "/sys", "/sys"]
    for path in sorted(around.etc.iterdir()):
        options += ["--ro-bind", str(path), f"/etc/{path.name}"]
    mounts = sorted(spec.get("volumeMounts", []), key=lambda mount: mount["mountPath"].count("/"))
    if "/dev/shm" not in [mount["mountPath"] for mount in mounts]:
        options += ["--size", str(_SHARED_MEMORY), "--perms", "1777", "--tmpfs", "/dev/shm"]
    for mount in mounts:
        volume = around.volumes[mount["name"]]
        source = volume.path / mount.get("subPath", "")
        if not source.exists():  # the kubelet makes it, and nobody else may
            source.mkdir(parents=True)
        how = "--ro-bind" if volume.read_only or mount.get("readOnly") else "--bind"
        options += [*_parents(Path(mount["mountPath"])), how, str(source), mount["mountPath"]]
    security = spec.get("securityContext", {})
    return [*options, *(["--remount-ro", "/"] if security.get("readOnlyRootFilesystem") else [])]


def _parents(path: Path) -> list[str]:
    """Makes the folders above a mount, which bubblewrap would make for root alone."""
    return [word for parent in reversed(path.parents[:-1]) for word in ("--perms", "0755", "--dir", str(parent))]


def _variables(environment: Mapping[str, str]) -> list[str]:
    return [word for name, value in environment.items() for word in ("--setenv", name, value)]


def _credentials(spec: Manifest, pod_security: Manifest) -> list[str]:
    """Becomes the user that the manifest names, without capabilities; `restricted` allows nothing else."""
    security = {**pod_security, **spec.get("securityContext", {})}
    user, group = security.get("runAsUser", _USER), security.get("runAsGroup", _USER)
    assert user != 0, f"container {spec['name']} would run as root"
    groups = sorted({*security.get("supplementalGroups", []), *([security["fsGroup"]] if "fsGroup" in security else [])})
    options = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    if security.get("allowPrivilegeEscalation") is False:
        options.append("--no-new-privs")
    if "ALL" in security.get("capabilities", {}).get("drop", []):
        options.append("--bounding-set=-all")
    return ["setpriv", "--reuid", str(user), "--regid", str(group), *options, "--inh-caps=-all"]
