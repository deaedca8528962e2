"""Opens the Arrow files of a store: their columns as views of the mapped file, or of what is decrypted when it is asked for.

All columns are lists: of tokens, of numbers, and texts, which are lists of bytes. No TensorFlow.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.encryption.encrypted_file import HEADER_BYTES, EncryptedContent
from trainer.encryption.files import Encryption

Array = npt.NDArray[Any]

_ALIGNED = 8  # an Arrow file begins with its magic, padded to so many bytes
_PREFIX_BYTES = 8  # of a message: a marker, and how many bytes its metadata have
_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE: addresses alone, without memory behind them
_PIECE = 2**17  # numbers that are decrypted at once where those at many places are asked for


class EncryptedNumbers:
    """Numbers that lie in an encrypted file from the offset `begin` of its content on. Any number of threads may read."""

    def __init__(self, content: EncryptedContent, begin: int, length: int, dtype: np.dtype[Any]) -> None:
        self._content, self._begin, self._length = content, begin, length
        self.dtype = dtype

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: Any) -> Any:
        """A number, those of a slice without steps, or those at ascending places."""
        if isinstance(key, slice):
            begin, end, step = key.indices(self._length)
            assert step == 1
            return self._slice(begin, max(begin, end))
        if isinstance(key, np.ndarray):
            return self._at(key)
        return self._slice(int(key), int(key) + 1)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = self._slice(0, self._length)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _slice(self, begin: int, end: int) -> Array:
        width = self.dtype.itemsize
        return np.frombuffer(self._content.read(self._begin + begin * width, self._begin + end * width), self.dtype)

    def _at(self, places: npt.NDArray[np.integer[Any]]) -> Array:
        """A piece at a time, so that what is held does not grow with the file."""
        found = np.empty(len(places), self.dtype)
        for begin in range(0, self._length, _PIECE):
            first, last = np.searchsorted(places, [begin, begin + _PIECE])
            if first < last:
                piece = self._slice(begin, min(begin + _PIECE, self._length))
                found[first:last] = piece[places[first:last] - begin]
        return found


Numbers = Array | EncryptedNumbers  # nothing is read before it is asked for


@dataclass(frozen=True)
class Lists:
    """A column of one record batch: list i is `values[offsets[i] : offsets[i + 1]]`."""

    values: Numbers
    offsets: Numbers
    is_tokens: bool

    def read(self, number: int) -> Array:
        begin, end = self.offsets[number : number + 2].tolist()
        return self.values[begin:end]


@dataclass(frozen=True)
class Batch:
    """The columns of a record batch, by name; each has a list a row."""

    num_rows: int
    columns: Mapping[str, Lists]


def read_batches(path: Path, name: str, encryption: Encryption) -> list[Batch]:
    """The record batches of a file that is `name` in its store.

    Raises OSError or ArrowException where it is no whole Arrow file, or lacks values, and SecurityError where it is not
    encrypted as it should be, or is not what was written.
    """
    # Closing gives the file's descriptor back at once; the arrays keep the mapping itself alive. Thousands of parts would
    # otherwise exceed the limit of open files.
    with pa.memory_map(str(path)) as file:
        mapped = file.read_buffer()
    if not encryption.decrypts(mapped[:HEADER_BYTES].to_pybytes(), path):
        reader = pa.ipc.open_file(mapped)
        return [batch_of(reader.get_batch(number)) for number in range(reader.num_record_batches)]
    assert encryption.key is not None
    view = memoryview(mapped).cast("B")
    content = EncryptedContent(lambda begin, end: view[begin:end], mapped.size, encryption.key, name, str(path))
    return _encrypted_batches(content)


def batch_of(batch: pa.RecordBatch) -> Batch:
    """Views of a record batch that is in memory, or mapped. Raises ArrowException where it lacks values, or its buffers are not
    as large as they should be; none is read for it."""
    batch.validate()

    def numbers(buffer: pa.Buffer | None, length: int, dtype: np.dtype[Any]) -> Numbers:
        return np.frombuffer(buffer, dtype, length) if buffer is not None and length else np.zeros(0, dtype)

    return _batch(batch, numbers)


def _encrypted_batches(content: EncryptedContent) -> list[Batch]:
    """Arrow is given addresses without memory behind them, into which the messages alone are decrypted, without what they
    describe: where a buffer ought to be tells where it is in the file."""
    addresses = mmap.mmap(-1, content.num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    whole = pa.py_buffer(addresses)

    def numbers(buffer: pa.Buffer | None, length: int, dtype: np.dtype[Any]) -> Numbers:
        begin = 0 if buffer is None or not length else buffer.address - whole.address
        return EncryptedNumbers(content, begin, length, dtype)

    batches, schema = [], None
    for message in _messages(content, addresses, whole):
        if message.type == "schema":
            schema = pa.ipc.read_schema(message)
        else:
            batches.append(_batch(pa.ipc.read_record_batch(message, schema), numbers))
    return batches


def _messages(content: EncryptedContent, addresses: mmap.mmap, whole: pa.Buffer) -> Iterator[pa.Message]:
    """An Arrow file is its magic, then the messages of a stream, then a footer."""
    begin = _ALIGNED

    def decrypt(num_bytes: int) -> bytes:
        end = min(begin + num_bytes, content.num_bytes)
        addresses[begin:end] = content.read(begin, end)
        return addresses[begin:end]

    while metadata_bytes := int.from_bytes(decrypt(_PREFIX_BYTES)[4:], "little"):
        decrypt(_PREFIX_BYTES + metadata_bytes)
        reader = pa.BufferReader(whole.slice(begin))
        yield pa.ipc.read_message(reader)
        begin += reader.tell()


def _batch(batch: pa.RecordBatch, numbers: Callable[[pa.Buffer | None, int, np.dtype[Any]], Numbers]) -> Batch:
    """`numbers` makes what is read later of a buffer, and of how many numbers of which type are in it."""

    def lists(column: pa.Array) -> Lists:
        is_large = pa.types.is_large_list(column.type)
        is_text = pa.types.is_large_string(column.type)
        if not is_text and not (is_large or pa.types.is_list(column.type)):
            raise pa.ArrowInvalid(f"a column of {column.type}, expected lists or texts")
        inner = None if is_text else column.values
        if column.null_count or (inner is not None and inner.null_count):
            raise pa.ArrowInvalid("a value is missing")
        offset_type = np.dtype(np.int64 if is_large or is_text else np.int32)
        offsets: Numbers = np.zeros(1, offset_type)
        if len(column):
            offsets = numbers(column.buffers()[1], len(column) + 1, offset_type)
        if inner is None:
            return Lists(numbers(column.buffers()[2], int(offsets[len(column)]), np.dtype(np.uint8)), offsets, False)
        if not pa.types.is_integer(inner.type):
            raise pa.ArrowInvalid(f"lists of {inner.type}, expected whole numbers")
        return Lists(numbers(inner.buffers()[1], len(inner), np.dtype(inner.type.to_pandas_dtype())), offsets, is_large)

    return Batch(batch.num_rows, {name: lists(batch.column(name)) for name in batch.schema.names})
