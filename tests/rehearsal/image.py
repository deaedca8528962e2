"""Builds k8s/Dockerfile on this machine, without a registry of images, and runs `drumline` in it: `make image-rehearsal`.

The base is a Debian that `debootstrap` makes. Build and run are chroots, since containers proper do not work in most
containers. Images are kept in a folder of the cache, where the next rehearsal finds what has not changed. How `pip` reaches
its packages here is mounted while the image is built, and not part of it.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "drumline" / "images"
_NEEDED = ("debootstrap", "buildah")
_RELEASE = "bookworm"
_BASE = f"localhost/drumline-base:{_RELEASE}"
_DOCKERFILE = "k8s/Dockerfile"
_IMAGE = "localhost/drumline:rehearsal"
# Where pip looks for the settings of a machine; the base has the folder, so that mounting leaves no trace.
_PIP_FOLDER = "/etc/xdg/pip"
_CHECKS = {
    "drumline --help": "drumline --help",
    "drumline doctor": "drumline doctor",
    # It runs as nobody, builds nothing, and has nothing of how this machine is set up.
    "what is in it": f"""
        test "$(id -u):$(id -g)" = 1000:1000 && test "$(pwd)" = /drumline
        ! command -v g++ cmake && ! ls {_PIP_FOLDER}/* 2>/dev/null && test ! -e /build
        python -c 'import horovod.tensorflow as hvd; assert hvd.gloo_built()'
    """,
}


class Storage:
    """Images and containers of `buildah` in a folder of their own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        policy = directory / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._options = ("--root", str(directory / "storage"), "--runroot", str(directory / "run"))
        self.trust = ("--signature-policy", str(policy))

    def command(self, *words: str) -> list[str]:
        return ["buildah", *self._options, *words]

    def ask(self, *words: str) -> str:
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout.strip()

    def has(self, image: str) -> bool:
        return not subprocess.run(
            self.command("inspect", "--type", "image", image), capture_output=True, check=False
        ).returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget the images of former rehearsals first")
    fresh = parser.parse_args(argv).fresh
    if os.geteuid() != 0:
        print("image-rehearsal: needs root, for chroots", file=sys.stderr)
        return 2
    _install_what_is_missing()
    if fresh and CACHE.exists():
        subprocess.run(Storage(CACHE).command("rm", "--all"), check=True)
        shutil.rmtree(CACHE)
    try:
        _rehearse(Storage(CACHE))
    except subprocess.CalledProcessError as error:
        print(f"image-rehearsal: exit code {error.returncode} of {shlex.join(error.cmd)}", file=sys.stderr)
        return 1
    return 0


def _rehearse(storage: Storage) -> None:
    rows: list[tuple[str, float]] = []
    if not storage.has(_BASE):
        rows.append((f"the base, by debootstrap {_RELEASE}", _timed(lambda: _make_base(storage))))
    rows.append((_DOCKERFILE, _timed(lambda: _build(storage))))
    container = storage.ask("from", "--pull-never", *storage.trust, _IMAGE)
    try:
        for what, script in _CHECKS.items():
            run = storage.command("run", "--isolation", "chroot", container, "--", "sh", "-euc", script)
            rows.append((what, _timed(partial(subprocess.run, run, check=True))))
    finally:
        storage.ask("rm", container)
    _tell(storage, rows)


def _install_what_is_missing() -> None:
    missing = [program for program in _NEEDED if shutil.which(program) is None]
    if missing:
        subprocess.run(["apt-get", "update", "--quiet"], check=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]
        subprocess.run([*install, *missing], env=environment, check=True)


def _make_base(storage: Storage) -> None:
    """A Debian with Python, as the images of registries have it."""
    with tempfile.TemporaryDirectory(prefix="drumline-base-") as folder:
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates,python3", _RELEASE, folder],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        for path in (*Path(folder, "var/cache/apt").rglob("*.*"), *Path(folder, "var/lib/apt/lists").rglob("*_*")):
            path.unlink()
        Path(folder, _PIP_FOLDER.lstrip("/")).mkdir(parents=True)
        container = storage.ask("from", "scratch")
        storage.ask("add", container, folder, "/")
        storage.ask("commit", "--rm", *storage.trust, container, _BASE)


def _build(storage: Storage) -> None:
    with tempfile.TemporaryDirectory(prefix="drumline-pip-") as folder:
        _write_pip_settings(Path(folder))
        words = ["bud", "--isolation", "chroot", "--layers", "--pull-never", *storage.trust, "--build-arg", f"BASE={_BASE}"]
        words += ["--volume", f"{folder}:{_PIP_FOLDER}:ro", "--file", _DOCKERFILE, "--tag", _IMAGE, "."]
        subprocess.run(storage.command(*words), cwd=ROOT, check=True)


def _write_pip_settings(folder: Path) -> None:
    """This machine's settings of pip, with copies of the files that they name; folders that they name stay here."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    settings = {}
    # Of two that say the same thing that of the environment holds, as for pip itself.
    for line in sorted(told.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, written = line.partition("=")
        name, values = key.rpartition(".")[2], str(ast.literal_eval(written)).split()
        kept = []
        for value in values:
            path = Path(value.removeprefix("file://"))
            if path.is_file():
                shutil.copy(path, folder / path.name)
                kept.append(f"{_PIP_FOLDER}/{path.name}")
            elif not path.is_dir():
                kept.append(value)
        if kept:
            settings[name] = " ".join(kept)
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    folder.chmod(0o755)


def _timed(step: Callable[[], object]) -> float:
    began = time.monotonic()
    step()
    return time.monotonic() - began


def _tell(storage: Storage, rows: Sequence[tuple[str, float]]) -> None:
    print("\nrehearsed                                seconds")
    for what, seconds in rows:
        print(f"{what:40} {seconds:7.1f}")
    print("\nimage                                    size")
    for image in (_BASE, _IMAGE):
        print(f"{image:40} {storage.ask('images', '--format', '{{.Size}}', image)}")
    print(f"\nBoth stay in {CACHE}; --fresh, or removing it, takes them away.")


if __name__ == "__main__":
    sys.exit(main())
