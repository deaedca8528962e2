"""The user's mistakes through the real command line: one line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training import TEXT, training_config, write_config, write_texts
from trainer.checkpoint import WEIGHTS, list_checkpoints
from trainer.cli import main
from trainer.data.manifest import MANIFEST_NAME, read_manifest
from trainer.data.prepare import prepare


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command line sets up logging for its process; here it must not outlive the test, whose stderr it writes to."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with texts, their store and a configuration, `config.yaml`, all of which a test may spoil."""
    write_texts(tmp_path)
    config = training_config(tmp_path, "run", train={"steps": 2})
    prepare(config, num_processes=1)
    write_config(config, tmp_path / "config.yaml")
    return tmp_path


@pytest.fixture(scope="module")
def trained(prepared: Path, tensorflow: ModuleType) -> Path:
    """A run with two checkpoints."""
    from trainer.loop import train

    config = training_config(prepared, "trained", train={"steps": 4}, checkpoint={"every": 2}, evaluation={"every": 2})
    train(config)
    return prepared / "runs" / "trained"


@pytest.fixture
def resumable(folder: Path, trained: Path) -> Path:
    """`folder` with that run in it, as `run`."""
    shutil.copytree(trained, folder / "runs" / "run")
    return folder


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a verb in a folder; it must fail as it should. The line that it says why in, after warnings that name files."""

    def run(folder: Path, *argv: str, num_warnings: int = 0) -> str:
        monkeypatch.chdir(folder)
        before = snapshot(folder)
        capsys.readouterr()
        code = main([argv[0], str(folder / "config.yaml"), *argv[1:], "--quiet"])
        said = capsys.readouterr()
        *warnings, line = [line for line in said.err.splitlines() if not is_tensorflows(line)]
        print(f"\n{line}")
        assert code == 2
        assert line.startswith("drumline: ")
        assert len(warnings) == num_warnings, said.err
        assert "Traceback" not in said.err and said.out == ""
        assert snapshot(folder) == before, "something was written"
        return line

    return run


def is_tensorflows(line: str) -> bool:
    """What TensorFlow's C++ says by itself when it is imported."""
    return line.startswith(("WARNING: All log messages before absl", "To enable the following")) or line[1:5].isdigit()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def change(folder: Path, **sections: Any) -> None:
    sections.setdefault("train", {"steps": 2})
    write_config(training_config(folder, "run", **sections), folder / "config.yaml")


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))


Complaint = Callable[..., str]


@pytest.mark.parametrize("verb", ["train", "prepare", "check"])
def test_an_unknown_key_is_named_with_line_and_nearest_name(folder: Path, complaint: Complaint, verb: str) -> None:
    edit(folder, "num_layers:", "num_layer:")
    with (folder / "config.yaml").open() as file:
        number = next(number for number, line in enumerate(file, start=1) if "num_layer:" in line)
    edit(folder, "num_layer: 2", "num_layers: 2\n  num_layer: 2")
    line = complaint(folder, verb)
    assert f"config.yaml:{number + 1}" in line and "num_layer" in line and "num_layers" in line


@pytest.mark.parametrize("verb", ["train", "prepare", "check"])
def test_a_value_of_the_wrong_type_is_named_with_line(folder: Path, complaint: Complaint, verb: str) -> None:
    edit(folder, "width: 32", "width: wide")
    line = complaint(folder, verb)
    assert "config.yaml:" in line and "model.width" in line and "wide" in line


def test_an_override_is_read_by_the_same_rules(folder: Path, complaint: Complaint) -> None:
    assert "train.stepz=3" in complaint(folder, "train", "train.stepz=3")


def test_a_configuration_that_is_not_there_is_named(folder: Path, complaint: Complaint) -> None:
    (folder / "config.yaml").unlink()
    assert "config.yaml" in complaint(folder, "train")


def test_a_source_that_is_not_there_is_named(folder: Path, complaint: Complaint) -> None:
    (folder / "train.txt").unlink()
    assert "train.txt" in complaint(folder, "prepare")


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_an_empty_corpus_is_named(folder: Path, complaint: Complaint, content: str) -> None:
    (folder / "train.txt").write_text(content)
    shutil.rmtree(folder / "store")
    assert "train.txt" in complaint(folder, "prepare")


def test_text_that_cannot_be_decoded_is_named_with_its_place(folder: Path, complaint: Complaint) -> None:
    (folder / "train.txt").write_bytes(b"first line\nsecond line\nthird \xff line\n")
    shutil.rmtree(folder / "store")
    line = complaint(folder, "prepare")
    assert "train.txt" in line and "3" in line and "0xff" in line


def test_a_store_that_is_not_there_names_the_command(folder: Path, complaint: Complaint) -> None:
    shutil.rmtree(folder / "store")
    assert "drumline prepare" in complaint(folder, "train")


def test_a_micro_batch_that_does_not_divide_the_batch_is_named(folder: Path, complaint: Complaint) -> None:
    assert "micro_batch_size" in complaint(folder, "train", "train.micro_batch_size=3")


@pytest.mark.usefixtures("tensorflow")
def test_a_batch_that_does_not_divide_by_the_replicas_is_named(folder: Path, complaint: Complaint) -> None:
    overrides = ("train.global_batch_size=7", "distribution.backend=mirrored", "distribution.num_replicas=2")
    line = complaint(folder, "train", *overrides)
    assert "global_batch_size" in line and "6 or 8" in line


def test_a_store_of_another_tokenizer_is_refused(folder: Path, complaint: Complaint) -> None:
    """The configuration asks for a given tokenizer; the store was made with its own."""
    other = training_config(folder, "other", data={"store": str(folder / "other")})
    (folder / "train.txt").write_text(TEXT[:5000].replace("e", "%") + "\n")
    prepare(other, num_processes=1)
    tokenizer = {"kind": "pretrained", "path": str(folder / "other" / "tokenizer.json")}
    change(folder, data={"tokenizer": tokenizer})
    assert "tokenizer" in complaint(folder, "train")


@pytest.mark.usefixtures("tensorflow")
def test_going_on_with_a_store_of_another_tokenizer_is_refused(resumable: Path, complaint: Complaint) -> None:
    (resumable / "train.txt").write_text(TEXT[:20_000].swapcase().replace("e", "%") + "\n")
    shutil.rmtree(resumable / "store")
    prepare(training_config(resumable, "run"), num_processes=1)
    line = complaint(resumable, "train", "train.steps=6")
    assert "another" in line and ("tokenizer" in line or "token_embedding" in line)


def test_a_truncated_store_is_named(folder: Path, complaint: Complaint) -> None:
    part = next((folder / "store" / "train").rglob("*.arrow"))
    os.truncate(part, part.stat().st_size // 2)
    line = complaint(folder, "train")
    assert part.name in line and "drumline prepare" in line


def test_a_store_with_a_file_missing_is_named(folder: Path, complaint: Complaint) -> None:
    part = next((folder / "store" / "train").rglob("*.arrow"))
    part.unlink()
    assert part.name in complaint(folder, "train")


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 99}', '{"version": 1}'])
def test_a_damaged_store_manifest_is_named(folder: Path, complaint: Complaint, content: str) -> None:
    (folder / "store" / MANIFEST_NAME).write_text(content)
    assert MANIFEST_NAME in complaint(folder, "train")


def test_too_little_text_for_one_sequence_is_named(folder: Path, complaint: Complaint) -> None:
    num_tokens = read_manifest(folder / "store").num_tokens("train")
    line = complaint(folder, "train", f"data.sequence_length={num_tokens + 1}")
    assert "sequence_length" in line


@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.width=64", "model.width was 32 and is now 64"),
        ("model.dropout=0.5", "model.dropout was 0.0 and is now 0.5"),
        ("data.sequence_length=16", "sequence_length was 32 and is now 16"),
        ("run.seed=8", "seed was 7 and is now 8"),
        ("train.global_batch_size=16", "global_batch_size was 8 and is now 16"),
    ],
)
def test_going_on_with_another_configuration_is_refused(
    resumable: Path, complaint: Complaint, override: str, said: str
) -> None:
    line = complaint(resumable, "train", override, "train.steps=6")
    assert said in line and "run.name" in line


@pytest.mark.usefixtures("tensorflow")
def test_fresh_refuses_a_run_that_has_checkpoints(resumable: Path, complaint: Complaint) -> None:
    assert "--fresh" in complaint(resumable, "train", "--fresh", "train.steps=6")


@pytest.mark.usefixtures("tensorflow")
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(resumable: Path, complaint: Complaint) -> None:
    infos = list_checkpoints(resumable / "runs" / "run" / "checkpoints")
    assert len(infos) == 2
    for info in infos:
        os.truncate(info.path / WEIGHTS, 100)
    line = complaint(resumable, "train", "train.steps=6", num_warnings=2)
    assert "step-00000002" in line and "step-00000004" in line


@pytest.mark.parametrize("verb", ["evaluate", "predict", "checkpoints"])
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    argv = {
        "evaluate": ["evaluate", str(tmp_path)],
        "predict": ["predict", str(tmp_path), "--text", "a"],
        "checkpoints": ["checkpoints", "list", str(tmp_path)],
    }[verb]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert not list(tmp_path.iterdir())
