"""Files of weights that others made: damaged, tampered with, or of a kind that is not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.errors import CheckpointError, UserError
from trainer.pretrained.new_folder import new_folder
from trainer.pretrained.tensor_files import TensorFiles
from trainer.safetensors_file import write_tensors

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16), "c": np.arange(3)}


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_tensors(file, tensors, {"format": "pt"})


def edit_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def test_tensors_are_float32_whatever_the_file_has(tmp_path: Path) -> None:
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    values = torch.tensor([[1.5, -2.25, 3.0e38, 0.0, float("inf")]])
    dtypes = {"wide": torch.float64, "plain": torch.float32, "brain": torch.bfloat16}
    safetensors.save_file({name: values.to(dtype) for name, dtype in dtypes.items()}, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path)
    for name, dtype in dtypes.items():
        assert files.floats(name).dtype == np.float32
        assert np.array_equal(files.floats(name), values.to(dtype).float().numpy())


def test_what_is_float32_already_is_mapped_and_not_copied(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", TENSORS)
    array = TensorFiles(tmp_path).floats("a")
    assert not array.flags.owndata and not array.flags.writeable
    assert np.array_equal(array, TENSORS["a"])


def tampered(change: str) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        a = header["a"]
        match change:
            case "beyond":
                a["data_offsets"] = [0, 10**9]
            case "negative":
                a["data_offsets"] = [-24, 0]
            case "backwards":
                a["data_offsets"] = a["data_offsets"][::-1]
            case "size":
                a["shape"] = [2, 4]
            case "huge":
                a["shape"] = [2**40, 2**40]
            case "fraction":
                a["shape"] = [2.0, 3]
            case "overlap":
                header["b"]["data_offsets"] = [a["data_offsets"][0], a["data_offsets"][0] + 8]
            case "type":
                a["dtype"] = "F31"
            case "no shape":
                del a["shape"]
            case "no entry":
                header["a"] = 5

    return edit


@pytest.mark.parametrize(
    "change", ["beyond", "negative", "backwards", "size", "huge", "fraction", "overlap", "type", "no shape", "no entry"]
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path: Path, change: str) -> None:
    write(tmp_path / "model.safetensors", TENSORS)
    edit_header(tmp_path / "model.safetensors", tampered(change))
    with pytest.raises(CheckpointError, match=r"model.safetensors: .*; it is damaged: fetch it again"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little") + b"{}",
        (200).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{{",
        (2).to_bytes(8, "little") + b"{}" + b"more",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="it is damaged: fetch it again"):
        TensorFiles(tmp_path)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is it cut short"):
        TensorFiles(tmp_path)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"x")
    with pytest.raises(CheckpointError, match="a name is there twice"):
        TensorFiles(tmp_path)


def index(folder: Path, table: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_tensors_are_found_in_many_files(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", {"a": TENSORS["a"]})
    write(tmp_path / "within/two.safetensors", {"b": TENSORS["b"]})
    index(tmp_path, {"a": "one.safetensors", "b": "within/two.safetensors"})
    assert sorted(TensorFiles(tmp_path).names) == ["a", "b"]


@pytest.mark.parametrize(
    "file", ["../one.safetensors", "/tmp/one.safetensors", "within/../../one.safetensors", "..\\one", "", "a\0b"]
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, file: str) -> None:
    write(tmp_path / "one.safetensors", {"a": TENSORS["a"]})
    (tmp_path / "folder").mkdir()
    index(tmp_path / "folder", {"a": file})
    with pytest.raises(CheckpointError, match="which is not in the folder"):
        TensorFiles(tmp_path / "folder")


@pytest.mark.parametrize("table", [None, {}, [], {"a": 5}])
def test_an_index_without_names_is_refused(tmp_path: Path, table: Any) -> None:
    index(tmp_path, table)
    with pytest.raises(CheckpointError, match="has no `weight_map`"):
        TensorFiles(tmp_path)


def test_an_index_and_its_files_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", {"a": TENSORS["a"]})
    index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"names what its files do not have: b \(one.safetensors\)"):
        TensorFiles(tmp_path)
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"two.safetensors: cannot be read: No such file"):
        TensorFiles(tmp_path)
    write(tmp_path / "two.safetensors", {"a": TENSORS["a"], "b": TENSORS["b"]})
    with pytest.raises(CheckpointError, match=r"has a, which another file of model.safetensors.index.json has too"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_a_pickle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError) as error:
        TensorFiles(tmp_path)
    assert f"has its weights in {name} alone, a pickle, and reading a pickle runs whatever program is in it" in str(error.value)
    assert "save_pretrained of transformers writes one" in str(error.value)


def test_a_pickle_beside_weights_is_no_matter(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", TENSORS)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert TensorFiles(tmp_path).shape("a") == (2, 3)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        TensorFiles(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no model.safetensors or model.safetensors.index.json"):
        TensorFiles(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match=r"has model.gguf, and no model.safetensors"):
        TensorFiles(tmp_path)


def test_a_new_folder_appears_at_once_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "above/new") as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file").write_text("content")
        assert not (tmp_path / "above/new").exists()
    assert (tmp_path / "above/new/inner/file").read_text() == "content"
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other") as folder:
        (folder / "file").write_text("content")
        _ = 1 / 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["above"]
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["new"]


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    with pytest.raises(UserError, match="is there already, and not empty"), new_folder(tmp_path / "empty"):
        pass
    with pytest.raises(UserError, match="is there already, and is no folder"), new_folder(tmp_path / "empty/file"):
        pass
    with pytest.raises(UserError, match="cannot be written"), new_folder(tmp_path / "empty/file/below"):
        pass
