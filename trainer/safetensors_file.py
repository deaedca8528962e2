"""safetensors files, written and read in pieces: no copy of the tensors is made in memory.

The format (https://huggingface.co/docs/safetensors): the length of the header as 8 bytes; the header, JSON, which has for each
tensor its type, shape and place; then the tensors' bytes, one after another. All is little-endian and row-major.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np

# Large enough that Python costs nothing, small enough that the piece is in the processor's cache when it is written after
# it was hashed or encrypted. All of that releases the interpreter's lock.
_PIECE_BYTES = 2**20

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class Writable(Protocol):
    """What bytes can be written to; all of them, at once."""

    def write(self, content: Any, /) -> int: ...


def write_tensors(file: Writable, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors of any shape by name. `metadata` goes into the header.

    Only an array that is not contiguous or not little-endian is copied, one at a time. Raises TypeError for a type that
    the format or NumPy does not have, OSError where it cannot be written.
    """
    # The widest types first, so that each tensor begins at a multiple of its type's width, for readers that map the file.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for piece in _pieces(tensors, names, metadata):
        file.write(piece)


def read_tensors(file: BinaryIO, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors whose names begin with `prefix`, by name, each read into an array of its own.

    Of a file that was verified: raises ValueError for one that is cut short or is none, but not for any other damage.
    """
    header = json.loads(_exactly(file, int.from_bytes(_exactly(file, 8), "little")))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if not name.startswith(prefix):
            begin, end = entry["data_offsets"]
            file.seek(end - begin, os.SEEK_CUR)
            continue
        array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
        view = _bytes_of(array)
        while len(view):
            num_read = file.readinto(view[: 16 * _PIECE_BYTES])  # type: ignore[attr-defined]
            if not num_read:
                raise ValueError(f"a safetensors file ends within {name}")
            view = view[num_read:]
        tensors[name] = array
    return tensors


def _pieces(
    tensors: Mapping[str, np.ndarray], names: list[str], metadata: Mapping[str, str] | None
) -> Iterator[bytes | memoryview]:
    yield _header(tensors, names, metadata)
    for name in names:
        array = tensors[name]
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        view = _bytes_of(array)
        for begin in range(0, len(view), _PIECE_BYTES):
            yield view[begin : begin + _PIECE_BYTES]


def _header(tensors: Mapping[str, np.ndarray], names: list[str], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        array = tensors[name]
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise TypeError(f"{name} is of type {array.dtype}; safetensors files are written of {', '.join(_DTYPES)}")
        begin, end = end, end + array.dtype.itemsize * math.prod(array.shape)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _exactly(file: BinaryIO, num_bytes: int) -> bytes:
    content = file.read(num_bytes)
    if len(content) != num_bytes:
        raise ValueError("a safetensors file ends within its header")
    return content
