"""Mounts and named network namespaces that this process alone sees, so that none can outlive it, however it ends.

The kernel takes them away with the last process in the mount namespace. Nothing has to be swept after a crash.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

_CLONE_NEWNS = 0x00020000  # <linux/sched.h>
_NAMES = Path("/run/netns")  # where `ip netns` keeps its names
NEEDED = {"bwrap": "bubblewrap", "ip": "iproute2", "nft": "nftables", "setpriv": "util-linux", "taskset": "util-linux"}


def find_obstacle() -> str | None:
    """Why no cluster can be rehearsed here; None where it can."""
    if os.geteuid() != 0:
        return "needs root, which makes network namespaces and mounts"
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        packages = " ".join(sorted({NEEDED[program] for program in missing}))
        return f"needs {', '.join(missing)}: apt-get install {packages}"
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"this machine makes no namespaces: {tried.stderr.strip()}"
    return None


def go_private() -> None:
    """Puts this process, and all that it starts from now on, into a mount namespace with no names of networks in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    _NAMES.mkdir(exist_ok=True)
    mount_memory(_NAMES, "mode=0755")


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def mount_memory(path: Path, options: str) -> None:
    """Mounts a tmpfs on a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "rehearsal", str(path)], check=True)
