"""The safetensors files of a folder, mapped into memory: what tensors there are, and each as float32 when it is asked for.

Others made these files, so nothing that their headers say is believed before it was compared with the file. No TensorFlow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from trainer.errors import CheckpointError
from trainer.files import is_inside

TENSORS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Bytes of an element, of the types that the format has (https://huggingface.co/docs/safetensors); below, those that are read.
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

_MAX_HEADER_BYTES = 100_000_000  # as the format's own reader has it

# Formats of weights that are not read. The first are pickles, or archives of them.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_OTHERS = ("*.h5", "*.msgpack", "*.gguf", "*.onnx")


@dataclass(frozen=True)
class _Entry:
    """A tensor's place in a file's bytes."""

    content: np.ndarray  # uint8, of the whole file, mapped
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFiles:
    """The tensors of a folder by name. Nothing but the headers is read until a tensor is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError where the folder has no safetensors files, or they are damaged."""
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        files = _files(folder)
        for path in dict.fromkeys(files.values()) or [folder / TENSORS_FILE]:
            for name, entry in _read_header(path).items():
                if name in self._entries:
                    raise CheckpointError(f"{path}: has {name}, which another file of {INDEX_FILE} has too; fetch them again")
                self._entries[name] = entry
        missing = [f"{name} ({path.name})" for name, path in files.items() if name not in self._entries]
        if missing:
            raise CheckpointError(
                f"{folder / INDEX_FILE}: names what its files do not have: {_list(missing)}; fetch them again"
            )

    @property
    def names(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def has_floats(self, name: str) -> bool:
        """Whether a tensor is of a type that weights are read from."""
        return self._entries[name].dtype in _FLOATS

    def dtype(self, name: str) -> str:
        return self._entries[name].dtype

    def floats(self, name: str) -> np.ndarray:
        """A tensor as float32: where the file has that, its bytes as they are mapped, else a copy."""
        entry = self._entries[name]
        array = entry.content[entry.begin : entry.end].view(_FLOATS[entry.dtype]).reshape(entry.shape)
        if entry.dtype == "BF16":  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor, as an index has it; nothing where there is one file alone, and no index."""
    if (folder / TENSORS_FILE).is_file():
        return {}
    index = folder / INDEX_FILE
    if not index.is_file():
        raise CheckpointError(f"{folder}: {_what_there_is(folder)}")
    try:
        written = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: cannot be read: {error}; fetch it again") from None
    table = written.get("weight_map") if isinstance(written, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{index}: has no `weight_map` of names and files; fetch it again")
    for file in dict.fromkeys(table.values()):
        if not is_inside(file):
            raise CheckpointError(f"{index}: names the file {file!r}, which is not in the folder; do not use these weights")
    return {name: folder / file for name, file in table.items()}


def _what_there_is(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder, expected one in Hugging Face's format; check model.initialize_from"
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"has its weights in {pickles[0]} alone, a pickle, and reading a pickle runs whatever program is in it; take a "
            f"folder with {TENSORS_FILE}: most models are published with one too, and save_pretrained of transformers writes "
            "one where you trust the file"
        )
    others = sorted(path.name for pattern in _OTHERS for path in folder.glob(pattern))
    found = f"has {others[0]}, and no" if others else "has no"
    return f"{found} {TENSORS_FILE} or {INDEX_FILE}; take a folder with one: save_pretrained of transformers writes it"


def _read_header(path: Path) -> dict[str, _Entry]:
    try:
        if path.stat().st_size < 8:
            raise _damaged(path, "is cut short")
        content = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check the path, or fetch it again") from None
    size = int.from_bytes(content[:8].tobytes(), "little")
    if size > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise _damaged(path, f"has a header of {size} bytes, in {len(content)} bytes of file")
    try:
        header = json.loads(content[8 : 8 + size].tobytes(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"has a header that is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise _damaged(path, "has a header that is no object")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, content, 8 + size, name, value) for name, value in header.items()}
    end = 8 + size
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise _damaged(path, f"has a gap or an overlap before {name}")
        end = entry.end
    if end != len(content):
        raise _damaged(path, f"has {len(content) - end} bytes after its last tensor")
    return entries


def _entry(path: Path, content: np.ndarray, offset: int, name: str, value: Any) -> _Entry:
    value = value if isinstance(value, dict) else {}
    dtype, shape, places = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _damaged(path, f"has {name} of the unknown type {dtype!r}")
    if not _are_counts(shape) or not _are_counts(places) or len(places) != 2:
        raise _damaged(path, f"has {name} with the shape {shape!r} at {places!r}")
    begin, end = places
    if begin > end or offset + end > len(content):
        raise _damaged(path, f"has {name} at the bytes {begin} to {end}, beyond its {len(content) - offset}: is it cut short?")
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _damaged(path, f"has {end - begin} bytes for {name}, which is {dtype} {shape}")
    return _Entry(content, dtype, tuple(shape), offset + begin, offset + end)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name is there twice")
    return content


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: {problem}; it is damaged: fetch it again")


def _list(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
