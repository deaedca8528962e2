"""safetensors files written and read in pieces, against the reader and writer of the safetensors project. No TensorFlow."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from trainer.safetensors_file import read_tensors, write_tensors


def examples() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    wide = generator.normal(size=(6, 8)).astype(np.float32)
    return {
        "matrix": generator.normal(size=(700, 1000)).astype(np.float32),  # of several pieces
        'with a ß and "quotes"': wide,
        "transposed": wide.T,
        "strided": wide[::2, 1::3],
        "big_endian": wide.astype(">f4"),
        "counter": np.asarray(2**40, np.int64),
        "scale": np.asarray(0.5, np.float32),
        "empty": np.empty((0, 3), np.float32),
        "flags": np.asarray([True, False, True]),
        "half": wide.astype(np.float16),
        "double": wide.astype(np.float64),
        "bytes": np.arange(7, dtype=np.uint8),
        "not_finite": np.asarray([np.nan, -np.inf, -0.0], np.float32),
    }


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        assert theirs[name].shape == array.shape, name
        assert theirs[name].dtype == little_endian.dtype, name
        assert theirs[name].tobytes() == little_endian.tobytes(), name


def test_what_we_write_the_projects_own_reader_reads(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    with path.open("wb") as file:
        write_tensors(file, examples())
    same(examples(), safetensors.numpy.load_file(path))


def test_of_a_file_those_whose_names_begin_so_are_read() -> None:
    content = io.BytesIO()
    write_tensors(content, examples())
    content.seek(0)
    same({name: array for name, array in examples().items() if name.startswith("s")}, read_tensors(content, "s"))


def test_what_we_write_we_read(tmp_path: Path) -> None:
    content = io.BytesIO()
    write_tensors(content, examples())
    content.seek(0)
    read = read_tensors(content)
    same(examples(), read)
    assert all(array.flags.writeable and array.flags.owndata for array in read.values())


def test_what_the_project_writes_we_read() -> None:
    contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in examples().items() if name != "big_endian"}
    written = safetensors.numpy.save(contiguous, metadata={"from": "elsewhere"})
    same(contiguous, read_tensors(io.BytesIO(written)))


def test_a_file_without_tensors_is_a_file() -> None:
    content = io.BytesIO()
    write_tensors(content, {})
    assert safetensors.numpy.load(content.getvalue()) == {} == read_tensors(io.BytesIO(content.getvalue()))


def test_every_tensor_begins_where_its_type_may_be_mapped() -> None:
    content = io.BytesIO()
    write_tensors(content, examples())
    for name, array in safetensors.deserialize(content.getvalue()):
        assert array["dtype"] and name
    header_bytes = int.from_bytes(content.getvalue()[:8], "little")
    assert header_bytes % 8 == 0
    import json

    header = json.loads(content.getvalue()[8 : 8 + header_bytes])
    for name, entry in header.items():
        assert entry["data_offsets"][0] % examples()[name].dtype.itemsize == 0, name


def test_a_type_that_the_format_has_not_is_named() -> None:
    with pytest.raises(TypeError, match="phases is of type complex64"):
        write_tensors(io.BytesIO(), {"phases": np.zeros(2, np.complex64)})


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 50, -1])
def test_a_file_cut_short_is_no_file(num_bytes: int) -> None:
    content = io.BytesIO()
    write_tensors(content, {"matrix": np.ones((4, 4), np.float32)})
    with pytest.raises(ValueError, match="ends within"):
        read_tensors(io.BytesIO(content.getvalue()[:num_bytes]))


def test_writing_makes_no_copy_of_the_tensors(tmp_path: Path) -> None:
    tensors = {f"matrix.{number}": np.ones((1024, 1024), np.float32) for number in range(8)}  # 32 MiB
    tracemalloc.start()
    try:
        with (tmp_path / "tensors").open("wb") as file:
            write_tensors(file, tensors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20, f"{peak} bytes were allocated"
