"""The manifest of a checkpoint: what belongs to it, with sizes and hashes, and a hash of itself.

It is written when all else is on disk, so a checkpoint that has one is whole, unless something was damaged later. Its bytes
are the one way to write down what it says, so a change of any byte is found: of a value by the hash, of anything else by
comparing with the bytes that ought to be there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.files import is_inside, json_bytes
from trainer.location import is_local, os_errors

FORMAT = 2
MANIFEST = "manifest.json"
UNFINISHED = f"it has no {MANIFEST}: its writing was cut short"


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """The manifest that says `content` (a JSON object), with the format's number and the hash over both."""
    content = {"format": FORMAT, **content}
    return json_bytes({**content, "sha256": _sha256(content)})


def read_manifest(path: Path, step: int) -> tuple[dict[str, Any] | None, str | None]:
    """The manifest of the checkpoint at `path`, which must be of `step`; or None, and what is wrong with it.

    Raises OSError where a server cannot be asked; on a local disk what cannot be read is damaged.
    """
    try:
        with os_errors():
            written = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None, f"{MANIFEST} is missing" if is_local(path) else UNFINISHED
    except OSError as error:
        if not is_local(path):
            raise
        return None, f"{MANIFEST} cannot be read ({error.strerror})"
    if not written:
        return None, f"{MANIFEST} is empty"
    try:
        manifest = json.loads(written)
        problem = _problem(manifest, written, step)
    except (ValueError, RecursionError) as error:  # no JSON, or text that cannot be encoded
        return None, f"{MANIFEST} is damaged ({error})"
    return (manifest, None) if problem is None else (None, problem)


def _problem(manifest: Any, written: bytes, step: int) -> str | None:
    changed = f"{MANIFEST} has changed since it was written"
    if not isinstance(manifest, dict) or "sha256" not in manifest:
        return f"{changed}, or an older version of Drumline wrote it: it has no hash of itself"
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    if _sha256(content) != manifest["sha256"]:
        return f"{changed} (its sha256 differs)"
    if json_bytes(manifest) != written:
        return f"{changed} (its bytes differ)"
    if manifest["format"] != FORMAT:
        return f"{MANIFEST} is of format {manifest['format']}, and this version of Drumline reads {FORMAT}"
    if manifest["step"] != step:
        return f"{MANIFEST} is of step {manifest['step']}"
    if not isinstance(manifest.get("files"), dict):
        return f"{MANIFEST} does not say what files there are"
    for name in manifest["files"]:
        if not is_inside(name):
            return f"{MANIFEST} names the file {name!r}, which is not in the checkpoint"
    return None


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(content)).hexdigest()
