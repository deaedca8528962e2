"""Files of any content end in a complaint that names them, or are read: no other exception, no hang, no flood of memory.

Each test changes a valid file at random, its bytes or its structure, and reads it as users' commands do. In the default suite
some dozens of changes are tried, always the same; `make fuzz` tries thousands of new ones, and where atheris is installed
thousands more, which it chooses by the lines of code that the ones before reached.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tests.checkpoint_examples import write
from tests.training import ROOT
from tests.unit.data_corpora import BPE, TEXT, WORDPIECE, data_config
from trainer.checkpoint import list_checkpoints, read_checkpoint, verify_checkpoint
from trainer.config import SecurityConfig
from trainer.config_io import load_config, load_search
from trainer.data.parts import check_part
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore
from trainer.data.store_plan import plan_store
from trainer.data.tokenizer import Tokenizer
from trainer.encryption.encrypted_file import HEADER_BYTES, PLACE_BYTES
from trainer.encryption.files import Encryption
from trainer.encryption.keys import MasterKey, create_key, read_key
from trainer.errors import SecurityError, UserError
from trainer.pretrained.settings import read_settings
from trainer.pretrained.tensor_files import TensorFiles
from trainer.safetensors_file import write_tensors

Explore = Callable[[Callable[[], None]], None]  # tries what a property says on many inputs

MAX_GROWTH_BYTES = 512 * 2**20
# Of atheris.
SEED_BYTES, RSS_LIMIT_MB = 4096, 2048

SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**400, 1e308, "..", "/etc/passwd", "a\0b", "nan", "[" * 2000]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH_BYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzing")


@pytest.fixture
def explore(request: pytest.FixtureRequest, tmp_path: Path) -> Explore:
    """Hypothesis alone; or with `--atheris-runs` atheris, in a process of its own, since it ends the one that it is in.

    It begins with bytes at random, as many as Hypothesis makes an example of: from fewer nothing comes.
    """
    runs = request.config.getoption("--atheris-runs")

    def guided(property: Any) -> None:
        import atheris

        for number in range(64):
            (tmp_path / f"{number}").write_bytes(os.urandom(SEED_BYTES))
        options = [f"-atheris_runs={runs}", f"-max_len={2 * SEED_BYTES}", "-len_control=0", f"-rss_limit_mb={RSS_LIMIT_MB}"]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                atheris.Setup(["atheris", *options, str(tmp_path)], property.hypothesis.fuzz_one_input)
                atheris.Fuzz()
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    return guided if runs else lambda property: property()


def read_or_complain(read: Callable[[], object]) -> None:
    """Nothing but a complaint may come of it."""
    try:
        read()
    except UserError as error:
        assert str(error)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with some changed, put in, taken out, repeated, or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(["change", "insert", "delete", "repeat", "cut"])):
            case "change":
                data[begin : begin + length] = draw(st.binary(min_size=length, max_size=length))[: len(data) - begin]
            case "insert":
                data[begin:begin] = draw(st.binary(max_size=length))
            case "delete":
                del data[begin : begin + length]
            case "repeat":
                data[begin:begin] = data[begin : begin + length] * draw(st.integers(1, 50))
            case "cut":
                del data[begin:]
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of JSON or YAML with values and keys replaced, left out, or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else list(range(len(node)))))
            if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 3)) == 0:
                match draw(st.sampled_from(["replace", "delete", "add"])):
                    case "replace":
                        node[key] = draw(VALUES)
                    case "delete":
                        del node[key]
                    case _ if isinstance(node, dict):
                        node[draw(st.text(max_size=8))] = draw(VALUES)
                    case _:
                        node.append(draw(VALUES))
                break
            node = node[key]
    return tree


def json_text(tree: Any) -> bytes:
    return json.dumps(tree).encode()


# Configurations.

DEMO, SEARCH = (ROOT / "configs/demo.yaml").read_bytes(), (ROOT / "configs/search/demo.yaml").read_bytes()


def test_a_configuration(folder: Path, explore: Explore) -> None:
    path = folder / "config.yaml"

    @example(content=b'{"optimizer": {"kind": []}, "model": {"family": []}}')  # were taken for keys of a dictionary
    @given(content=damaged(DEMO) | altered(yaml.safe_load(DEMO)).map(json_text) | st.binary(max_size=200))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_or_complain(lambda: load_config(path))

    explore(read)


def test_overrides(explore: Explore) -> None:
    known = st.sampled_from(["model.width=[[", "a.b.c=1", "data.train.9.path=x"])

    @given(overrides=st.lists(st.text(max_size=30) | known, max_size=3))
    def read(overrides: list[str]) -> None:
        read_or_complain(lambda: load_config(ROOT / "configs/demo.yaml", overrides))

    explore(read)


def test_a_search(folder: Path, explore: Explore) -> None:
    path = folder / "search.yaml"

    @given(content=damaged(SEARCH) | altered(yaml.safe_load(SEARCH)).map(json_text))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_or_complain(lambda: load_search(path))

    explore(read)


# Inputs.


def write_inputs(path: Path) -> dict[str, Path]:
    """A small file in each format that records are read from."""
    rows = [{"text": line, "label": number % 2} for number, line in enumerate(TEXT[:3000].splitlines()) if line.strip()]
    files = {name: path / f"input.{name}" for name in ("jsonl", "csv", "tsv", "parquet", "gz", "zst")}
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files["jsonl"].write_bytes(lines)
    files["csv"].write_text("text,label\n" + "".join(f'"{row["text"].replace(chr(34), "")}",{row["label"]}\n' for row in rows))
    files["tsv"].write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), files["parquet"])
    for name, codec in (("gz", "gzip"), ("zst", "zstd")):
        with pa.CompressedOutputStream(str(files[name]), codec) as file:
            file.write(lines)
    return files


@pytest.mark.parametrize("name", ["jsonl", "csv", "tsv", "parquet", "gz", "zst"])
def test_an_input(folder: Path, name: str, explore: Explore) -> None:
    original = write_inputs(folder)[name].read_bytes()
    path = folder / f"damaged.jsonl.{name}" if name in ("gz", "zst") else folder / f"damaged.{name}"
    file_format = "jsonl" if name in ("gz", "zst") else name

    @given(content=damaged(original))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        config = data_config(
            folder / "none", [{"path": str(path)}], file_format=file_format, task="classification", family="bert",
            tokenizer=WORDPIECE,
        )  # fmt: skip
        read_or_complain(lambda: [check_part(part) for part in plan_store(config).parts])

    explore(read)


# Stores.


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    (folder / "text.txt").write_text(TEXT[:20_000])
    prepare(data_config(folder / "store", [{"path": str(folder / "text.txt")}], tokenizer=BPE))
    return folder / "store"


def read_all(store: Path) -> None:
    for stream in TokenStore(store, "train").streams:
        tokens = np.zeros(stream.num_tokens, np.int32)
        stream.read_into(tokens, 0)


def test_the_manifest_of_a_store(store: Path, folder: Path, explore: Explore) -> None:
    original = (store / "manifest.json").read_bytes()
    copied = shutil.copytree(store, folder / "store-of-manifest")

    nameless = json.loads(original)
    nameless["train"][0]["parts"][0]["file"] = None

    @example(content=json_text(nameless))  # was taken for a path
    @given(content=damaged(original) | altered(json.loads(original)).map(json_text))
    def read(content: bytes) -> None:
        (copied / "manifest.json").write_bytes(content)
        read_or_complain(lambda: read_all(copied))

    explore(read)


def test_a_part_of_a_store(store: Path, folder: Path, explore: Explore) -> None:
    copied = shutil.copytree(store, folder / "store-of-part")
    (part,) = copied.glob("train/0/*.arrow")
    original = part.read_bytes()

    @given(content=damaged(original))
    def read(content: bytes) -> None:
        # Of the size that the manifest says: others are refused without a look.
        part.write_bytes((content + original[len(content) :])[: len(original)])
        read_or_complain(lambda: TokenStore(copied, "train", verify=True))
        read_or_complain(lambda: read_all(copied))

    explore(read)


def test_a_tokenizer(store: Path, folder: Path, explore: Explore) -> None:
    original = (store / "tokenizer.json").read_bytes()
    path = folder / "tokenizer.json"

    @given(content=damaged(original) | altered(json.loads(original)).map(json_text))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_or_complain(lambda: Tokenizer.load(path).encode("some text, and more of it\n"))

    explore(read)


# Encrypted files.


def test_an_encrypted_file(folder: Path, explore: Explore) -> None:
    """None but the one that was written is read."""
    path, encryption = folder / "encrypted", Encryption(MasterKey(bytes(range(32))), is_on=True)
    encryption.write_file(path, TEXT[:1000].encode(), "file")
    original = path.read_bytes()
    free = slice(PLACE_BYTES, HEADER_BYTES)  # the second place for a key, which is used when the first one is wrapped anew

    @given(content=damaged(original) | st.binary(max_size=400))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        is_same = content[: free.start] + content[free.stop :] == original[: free.start] + original[free.stop :]
        try:
            assert encryption.read_bytes(path, "file") == TEXT[:1000].encode()
            assert is_same and len(content) == len(original)
        except SecurityError as error:
            assert str(path) in str(error)
            assert content != original

    explore(read)


def test_a_part_of_an_encrypted_store(folder: Path, explore: Explore) -> None:
    create_key(folder / "key")
    security = SecurityConfig(encrypt=True, key_file=str(folder / "key"))
    (folder / "sealed.txt").write_text(TEXT[:20_000])
    config = data_config(folder / "sealed", [{"path": str(folder / "sealed.txt")}], tokenizer=BPE)
    prepare(config.model_copy(update={"security": security}))
    (part,) = (folder / "sealed").glob("train/0/*.arrow")
    original, encryption = part.read_bytes(), Encryption.of(security)

    @given(content=damaged(original))
    def read(content: bytes) -> None:
        part.write_bytes((content + original[len(content) :])[: len(original)])
        read_or_complain(lambda: TokenStore(folder / "sealed", "train", encryption, verify=True))

    explore(read)


def test_a_key(folder: Path, explore: Explore) -> None:
    @given(content=st.binary(max_size=60) | damaged(b64encode(bytes(range(32)))))
    def read(content: bytes) -> None:
        (folder / "some-key").write_bytes(content)
        read_or_complain(lambda: read_key(SecurityConfig(key_file=str(folder / "some-key"))))

    explore(read)


# Weights.


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    path = folder / "weights"
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        write_tensors(
            file, {"a": np.ones((3, 4), np.float32), "b": np.arange(6, dtype=np.float16), "c": np.zeros((), np.int64)}
        )
    return path


def test_safetensors(weights: Path, folder: Path, explore: Explore) -> None:
    original = (weights / "model.safetensors").read_bytes()
    size = int.from_bytes(original[:8], "little")
    header = altered(json.loads(original[8 : 8 + size])).map(
        lambda tree: len(json_text(tree)).to_bytes(8, "little") + json_text(tree) + original[8 + size :]
    )
    target = folder / "other-weights"
    target.mkdir(exist_ok=True)

    def read_floats() -> None:
        files = TensorFiles(target)
        for name in files.names:
            if files.has_floats(name):
                files.floats(name).sum()

    @given(content=damaged(original) | header)
    def read(content: bytes) -> None:
        (target / "model.safetensors").write_bytes(content)
        with np.errstate(all="ignore"):
            read_or_complain(read_floats)

    explore(read)


BERT = {
    "model_type": "bert", "vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 32, "hidden_act": "gelu",
}  # fmt: skip


def test_the_configuration_of_pretrained_weights(folder: Path, explore: Explore) -> None:
    path = folder / "pretrained"
    path.mkdir(exist_ok=True)

    @given(content=altered(BERT).map(json_text) | damaged(json_text(BERT)))
    def read(content: bytes) -> None:
        (path / "config.json").write_bytes(content)
        read_or_complain(lambda: read_settings(path))

    explore(read)


# Checkpoints.


def test_a_checkpoint(folder: Path, explore: Explore) -> None:
    (checkpoint,) = write(folder / "checkpoints", 3)
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    originals = {path: path.read_bytes() for path in files}

    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(files))
        content = data.draw(damaged(originals[path]))
        path.write_bytes(content)
        try:
            read_or_complain(lambda: list_checkpoints(folder / "checkpoints"))
            problem = verify_checkpoint(checkpoint)
            assert (problem is None) == (content == originals[path])
            if problem is None:
                read_checkpoint(checkpoint)
        finally:
            path.write_bytes(originals[path])

    explore(read)
