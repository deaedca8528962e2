"""A whole run on encrypted files: prepared, trained, resumed, evaluated, exported, rotated; and its key nowhere."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from tests.training import BIN, ROOT, TEXT, json_lines, run_path, train_losses, training_config, write_config, write_texts
from trainer.checkpoint import newest_good, read_checkpoint
from trainer.config import SecurityConfig
from trainer.data.prepare import prepare
from trainer.encryption.encrypted_file import HEADER_BYTES, is_encrypted
from trainer.encryption.files import Encryption
from trainer.encryption.keys import create_key
from trainer.errors import SecurityError

# What may be read by everybody: names and settings, numbers and paths, and no text.
READABLE = (
    *(".lock", "manifest.json", "config.yaml", "run.json", "metrics.jsonl", "ledger.jsonl"),
    *("tokenizer-source.json", "part-"),
)


def encrypted(path: Path) -> bool:
    with path.open("rb") as file:
        return is_encrypted(file.read(HEADER_BYTES))


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tensorflow: Any) -> tuple[Any, Any]:
    """The configurations of two runs, that are trained: as it is, and encrypted, which was stopped half-way."""
    from trainer.loop import train

    folder = tmp_path_factory.mktemp("encrypted")
    write_texts(folder)
    create_key(folder / "key")
    security = {"encrypt": True, "key_file": str(folder / "key")}
    plain = training_config(
        folder, "plain", train={"steps": 20}, optimizer={"schedule": "constant", "minimum_learning_rate": 0.0}
    )
    data = plain.data.model_copy(update={"store": str(folder / "encrypted-store")})
    changes = {"data": data, "security": SecurityConfig(**security), "run": plain.run.model_copy(update={"name": "encrypted"})}
    sealed = plain.model_copy(update=changes)
    for config in (plain, sealed):
        prepare(config)
    train(plain)
    train(sealed.model_copy(update={"train": sealed.train.model_copy(update={"steps": 10})}))
    train(sealed)
    return plain, sealed


@pytest.fixture(scope="module")
def sealed(pair: tuple[Any, Any]) -> Any:
    return pair[1]


def test_an_encrypted_run_has_the_losses_and_weights_of_one_that_is_not(pair: tuple[Any, Any]) -> None:
    plain, sealed = (train_losses(run_path(config)) for config in pair)
    assert sealed == plain
    encryption = Encryption.of(pair[1].security)
    read = read_checkpoint(newest_good(run_path(pair[1]) / "checkpoints") or Path(), encryption)
    assert read.progress.step == 20
    ours, theirs = (json_lines(run_path(config) / "ledger.jsonl")[-1] for config in pair)
    assert (ours["hash"], ours["num_samples"]) == (theirs["hash"], theirs["num_samples"])


def test_all_that_has_text_or_weights_is_encrypted(sealed: Any) -> None:
    words = [line for line in TEXT.splitlines() if len(line) > 60][3][:50].encode()
    for folder in (Path(sealed.data.store), run_path(sealed)):
        for path in files(folder):
            is_readable = (path.name.startswith(READABLE) and path.suffix != ".arrow") or "tensorboard" in path.parts
            assert encrypted(path) != is_readable, path
            assert words not in path.read_bytes(), path


def test_evaluation_prediction_and_verification_read_it(sealed: Any, tensorflow: Any) -> None:
    from trainer.evaluate import evaluate_run
    from trainer.prediction.model import load_model
    from trainer.verify import verify_run

    assert evaluate_run(run_path(sealed))["step"] == 20
    assert load_model(run_path(sealed), "latest").tokenizer.vocabulary_size > 10
    assert "every one consumed as planned" in str(verify_run(run_path(sealed)))


def test_a_store_that_is_not_encrypted_is_refused_and_made_again(sealed: Any, tmp_path: Path) -> None:
    from trainer.data.corpus import open_corpus
    from trainer.errors import DataError

    store = tmp_path / "store"
    plain = sealed.model_copy(
        update={"security": SecurityConfig(), "data": sealed.data.model_copy(update={"store": str(store)})}
    )
    prepare(plain)
    again = plain.model_copy(update={"security": sealed.security})
    with pytest.raises(DataError, match=r"was prepared with security\.encrypt null, and it is now true"):
        open_corpus(again)
    before = open_corpus(plain).order_fingerprint
    prepare(again)
    assert encrypted(store / "train/0/part-00000.arrow")
    assert open_corpus(again).order_fingerprint == before  # so a run may turn to encryption: its samples are the same
    part = store / "train/0/part-00000.arrow"
    shutil.copy(Path(sealed.data.store) / "validation/0/part-00000.arrow", part)
    with pytest.raises((DataError, SecurityError), match=r"part-00000\.arrow"):
        open_corpus(again)


@pytest.mark.processes
def test_exports_are_encrypted_and_decrypted_by_the_verb(sealed: Any, tmp_path: Path) -> None:
    for kind in ("huggingface", "savedmodel"):
        drumline("export", str(run_path(sealed)), "--format", kind, "--output", str(tmp_path / kind))
        assert all(encrypted(path) for path in files(tmp_path / kind))
        key = ("--key-file", str(sealed.security.key_file))
        drumline("keys", "decrypt", *key, str(tmp_path / kind), "--output", str(tmp_path / f"{kind}-plain"))
    tensors = safetensors.numpy.load_file(tmp_path / "huggingface-plain" / "model.safetensors")
    assert any("wte" in name for name in tensors)
    served = f"import tensorflow as tf; print(sorted(tf.saved_model.load({str(tmp_path / 'savedmodel-plain')!r}).signatures))"
    loaded = subprocess.run([sys.executable, "-c", served], capture_output=True, text=True, check=True)
    assert "logits" in loaded.stdout


def test_after_a_rotation_the_run_goes_on_with_the_new_key_alone(sealed: Any, tmp_path: Path, tensorflow: Any) -> None:
    from trainer.loop import train

    for name in ("runs", "encrypted-store"):
        shutil.copytree(Path(sealed.data.store).parent / name, tmp_path / name)
    create_key(tmp_path / "new")
    files_before = {path: path.read_bytes()[HEADER_BYTES:] for path in files(tmp_path)}
    drumline(
        *("keys", "rotate", "--key-file", str(sealed.security.key_file), "--new-key-file", str(tmp_path / "new")),
        *(str(tmp_path / "runs" / "encrypted"), str(tmp_path / "encrypted-store")),
    )
    assert {path: path.read_bytes()[HEADER_BYTES:] for path in files(tmp_path)} == files_before
    moved = sealed.model_copy(
        update={
            "run": sealed.run.model_copy(update={"directory": str(tmp_path / "runs")}),
            "data": sealed.data.model_copy(update={"store": str(tmp_path / "encrypted-store")}),
            "train": sealed.train.model_copy(update={"steps": 22}),
        }
    )
    drumline("checkpoints", "verify", str(run_path(moved)))
    with pytest.raises(SecurityError, match="and the one that was given"):
        train(moved)
    train(moved.model_copy(update={"security": SecurityConfig(encrypt=True, key_file=str(tmp_path / "new"))}))
    assert train_losses(run_path(moved)).keys() == set(range(1, 23))


def test_a_damaged_header_of_a_key_makes_the_checkpoint_before_it_the_newest(sealed: Any, tmp_path: Path) -> None:
    shutil.copytree(run_path(sealed) / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "step-00000020" / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[70] ^= 1
    newest.write_bytes(content)
    found = newest_good(tmp_path / "checkpoints")
    assert found is not None
    assert found.name == "step-00000010"


@pytest.mark.processes
def test_the_key_is_nowhere(tmp_path: Path) -> None:
    """In nothing that is written, told, or seen by other users: not by commands that work, that are refused, or that crash."""
    (tmp_path / "data").mkdir()
    write_texts(tmp_path / "data", 6_000)
    create_key(tmp_path / "key")
    text = (tmp_path / "key").read_text().strip()
    (tmp_path / "key").unlink()
    key = base64.b64decode(text)
    forms = [text.encode(), key, key.hex().encode(), repr(key).encode()]
    often = {"every": 2}
    backend = {"backend": "auto"}
    config = training_config(
        Path("data"), "secret", train={"steps": 4}, checkpoint=often, evaluation=often, distribution=backend
    )
    write_config(config, tmp_path / "config.yaml")
    options = ["config.yaml", "security.encrypt=true", "security.key_environment=DRUMLINE_TEST_KEY"]
    told, seen, variables = b"", Commands(), {"DRUMLINE_TEST_KEY": text}
    run = "data/runs/secret"
    with seen:
        for verb, *rest in (
            ("check", *options),
            ("prepare", *options),
            ("doctor", *options),
            ("train", *options),
            ("evaluate", run),
            ("predict", run, "--text", "The", "--max-tokens", "9"),
            ("export", run, "--format", "huggingface", "--output", "exported"),
            ("launch", "local", *options, "run.name=launched", "--workers", "1"),
            ("launch", "kubernetes", *options, "--image", "drumline:1", "--nodes", "2", "--environment-secret", "key"),
            ("keys", "rotate", "--key-environment", "DRUMLINE_TEST_KEY", "--new-key-file", "missing", "data/store"),
        ):
            done = subprocess.run(
                [BIN / "drumline", "--verbose", verb, *rest],
                **{"cwd": tmp_path, "env": os.environ | variables, "capture_output": True, "check": False},
            )
            told += done.stdout + done.stderr
            assert done.returncode == (2 if verb == "keys" else 0), done.stderr.decode()
        crash = "import pathlib, trainer.config_io, trainer.loop\n"
        crash += "trainer.loop._announce = lambda *given: 1 / 0\n"
        crash += f"given = {[*options[1:], 'run.name=crashed']!r}\n"
        crash += "trainer.loop.train(trainer.config_io.load_config(pathlib.Path('config.yaml'), given))\n"
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", crash],
            **{
                "cwd": tmp_path,
                "env": os.environ | variables | {"PYTHONPATH": str(ROOT)},
                "capture_output": True,
                "check": False,
            },
        )
        assert b"ZeroDivisionError" in done.stderr, done.stderr.decode()
        told += done.stdout + done.stderr
    num_files = 0
    for path in files(tmp_path):
        content = path.read_bytes()
        assert not any(form in content for form in forms), path
        num_files += 1
    assert not any(form in told for form in forms)
    assert len(seen.lines) >= 10
    assert not any(form in line for form in forms for line in seen.lines)
    print(f"searched for the key: {num_files} files, {len(told):,} bytes that were told, {len(seen.lines)} command lines")


class Commands:
    """The command lines that other users of the machine see of the test's own processes while the block runs."""

    def __init__(self) -> None:
        self.lines: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = process.read_bytes()
                except OSError:
                    continue
                if b"drumline" in line or b"trainer" in line:
                    self.lines.add(line)
            time.sleep(0.02)


def drumline(*arguments: str) -> None:
    done = subprocess.run([BIN / "drumline", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
