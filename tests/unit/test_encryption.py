"""Encrypted files: what was written is read, by its key alone; whatever was done to a file is refused by name."""

from __future__ import annotations

import base64
import os
import random
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.config import SecurityConfig
from trainer.data.arrow_files import EncryptedNumbers, batch_of, read_batches
from trainer.encryption.encrypted_file import CHUNK_BYTES, HEADER_BYTES, PLACE_BYTES
from trainer.encryption.files import PLAIN, Encryption, stored_sha256
from trainer.encryption.folders import decrypt, rotate
from trainer.encryption.keys import MasterKey, create_key, read_key
from trainer.errors import SecurityError

NAME = "train/0/part-00000.arrow"
SEALED_CHUNK = CHUNK_BYTES + 16
SIZES = [0, 1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 77]


def encryption(seed: int = 1) -> Encryption:
    return Encryption(MasterKey(random.Random(seed).randbytes(32)), is_on=True)


def content_of(num_bytes: int) -> bytes:
    return random.Random(num_bytes).randbytes(num_bytes)


def write(path: Path, content: bytes, name: str = NAME, seed: int = 1) -> Path:
    encryption(seed).write_atomically(path, content, name)
    return path


@pytest.mark.parametrize("num_bytes", SIZES)
def test_what_was_written_is_read_whole_and_at_any_place(tmp_path: Path, num_bytes: int) -> None:
    content = content_of(num_bytes)
    path = write(tmp_path / "file", content)
    assert encryption().read_bytes(path, NAME) == content
    assert len(content) < 100 or content not in path.read_bytes()
    generator = random.Random(5)
    with encryption().opened(path, NAME) as file:
        for _ in range(50):
            begin = generator.randrange(num_bytes + 1)
            length = generator.randrange(num_bytes + 2)
            file.seek(begin)
            assert file.read(length) == content[begin : begin + length]
        file.seek(-min(num_bytes, 9), os.SEEK_END)
        assert file.read() == content[num_bytes - min(num_bytes, 9) :]


def test_it_does_not_matter_in_which_pieces_it_was_written(tmp_path: Path) -> None:
    content, pieces = content_of(5 * CHUNK_BYTES + 3), random.Random(3)
    with encryption().new_file(tmp_path / "file", NAME) as file:
        begin = 0
        while begin < len(content):
            end = begin + pieces.choice([1, 1000, CHUNK_BYTES, 3 * CHUNK_BYTES])
            file.write(content[begin:end])
            begin = end
        assert file.tell() == len(content)
    assert encryption().read_bytes(tmp_path / "file", NAME) == content
    assert file.num_bytes == (tmp_path / "file").stat().st_size
    assert stored_sha256(tmp_path / "file") == (file.sha256, None)


def test_each_file_has_a_key_of_its_own(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, bytes(1000)).read_bytes() for name in ("first", "second"))
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]
    assert encryption().sha256(tmp_path / "first", NAME) == PLAIN.sha256(_plain(tmp_path / "plain", bytes(1000)), NAME)


def _plain(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tampered(content: bytes, others: dict[str, bytes], number: int) -> tuple[str, bytes]:
    """The `number`-th way to change an encrypted file, and what it is called."""
    generator = random.Random(number)
    num_chunks = -(-(len(content) - HEADER_BYTES) // SEALED_CHUNK)

    def chunk(index: int) -> bytes:
        return content[HEADER_BYTES + index * SEALED_CHUNK :][:SEALED_CHUNK]

    chunks = [chunk(index) for index in range(num_chunks)]
    header, place = content[:HEADER_BYTES], generator.randrange(len(content))
    match number % 10:
        case 0 | 1 | 2:
            while PLACE_BYTES <= place < HEADER_BYTES:  # a place that is free
                place = generator.randrange(len(content))
            changed = bytearray(content)
            changed[place] ^= 1 << generator.randrange(8)
            return f"bit of byte {place} flipped", bytes(changed)
        case 3:
            return f"cut to {place} bytes", content[:place]
        case 4:
            kept = generator.randrange(num_chunks)
            return f"cut to {kept} whole chunks", header + b"".join(chunks[:kept])
        case 5:
            first, second = generator.sample(range(num_chunks), 2)
            chunks[first], chunks[second] = chunks[second], chunks[first]
            return f"chunks {first} and {second} swapped", header + b"".join(chunks)
        case 6:
            index = generator.randrange(num_chunks)
            return f"chunk {index} twice", header + b"".join([*chunks[: index + 1], *chunks[index:]])
        case 7:
            index = generator.randrange(num_chunks)
            other = others["another file"][HEADER_BYTES + index * SEALED_CHUNK :][:SEALED_CHUNK]
            return f"chunk {index} of another file", header + b"".join([*chunks[:index], other, *chunks[index + 1 :]])
        case 8:
            kind = generator.choice(sorted(others))
            return kind, others[kind]
        case _:
            return "bytes added", content + generator.randbytes(generator.randrange(1, 200))


def test_of_200_tampered_files_all_are_refused_by_name(tmp_path: Path) -> None:
    content = content_of(5 * CHUNK_BYTES + 999)
    original = write(tmp_path / "file", content).read_bytes()
    others = {
        "another file": write(tmp_path / "other", content_of(len(content) + 1)[:-1], "train/0/part-00001.arrow").read_bytes(),
        "a file of another key": write(tmp_path / "foreign", content, seed=2).read_bytes(),
        "not encrypted": content,
        "the header of another file": write(tmp_path / "again", content).read_bytes()[:HEADER_BYTES] + original[HEADER_BYTES:],
    }
    path, refused = tmp_path / "victim", 0
    for number in range(200):
        what, changed = tampered(original, others, number)
        assert changed != original, what
        path.write_bytes(changed)
        try:
            assert encryption().read_bytes(path, NAME) is None, f"{what} was read"
        except SecurityError as error:
            assert str(path) in str(error), what
            refused += 1
    print(f"{refused} of 200 tampered files refused")
    assert refused == 200


def test_a_file_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file", b"tokens", "step-00000010/model.safetensors")
    with pytest.raises(SecurityError, match="another file, that was put in its place"):
        encryption().read_bytes(path, "step-00000020/model.safetensors")


def test_without_the_key_and_with_another_it_is_told_which_is_wanted(tmp_path: Path) -> None:
    path, key = write(tmp_path / "file", b"tokens"), encryption().key
    assert key is not None
    with pytest.raises(SecurityError, match=r"is encrypted; give its key with security\.key_file"):
        PLAIN.read_bytes(path, NAME)
    with pytest.raises(SecurityError, match=f"with the key {key.identifier.hex()}, and the one that was given"):
        encryption(2).read_bytes(path, NAME)


@pytest.fixture
def arrow_file(tmp_path: Path) -> tuple[Path, pa.RecordBatch]:
    """Three record batches of all kinds of columns, with empty lists and texts, and one without rows."""
    generator = np.random.default_rng(2)
    tokens = [generator.integers(0, 60_000, length).astype(np.uint16) for length in generator.integers(0, 90, 3_000)]
    kind = pa.large_list(pa.field("item", pa.uint16(), nullable=False))
    numbers = pa.list_(pa.field("item", pa.int32(), nullable=False))
    batch = pa.record_batch(
        [
            pa.array(tokens, kind),
            pa.array([[number] for number in range(len(tokens))], numbers),
            pa.array([f"Maß {number}" * (number % 3) for number in range(len(tokens))], pa.large_string()),
        ],
        names=["tokens", "labels", "text"],
    )
    with encryption().new_file(tmp_path / "part.arrow", NAME) as file, pa.ipc.new_file(file, batch.schema) as writer:
        for piece in (batch, batch.slice(0, 0), batch.slice(5, 10), batch):
            writer.write_batch(piece)
    return tmp_path / "part.arrow", batch


def test_columns_of_an_encrypted_file_are_those_that_were_written(arrow_file: tuple[Path, pa.RecordBatch]) -> None:
    path, batch = arrow_file
    found = read_batches(path, NAME, encryption())
    expected = batch_of(batch)
    assert [each.num_rows for each in found] == [3_000, 0, 10, 3_000]
    for each in (found[0], found[3]):
        for name, column in expected.columns.items():
            ours = each.columns[name]
            assert ours.is_tokens == column.is_tokens == (name == "tokens")
            assert len(ours.values) == len(column.values)
            np.testing.assert_array_equal(np.asarray(ours.values), np.asarray(column.values))
            np.testing.assert_array_equal(np.asarray(ours.offsets), np.asarray(column.offsets))
            for row in (0, 1, 1_500, 2_999):
                np.testing.assert_array_equal(ours.read(row), column.read(row))
            places = np.unique(np.random.default_rng(1).integers(0, len(column.values), 500))
            np.testing.assert_array_equal(ours.values[places], column.values[places])
    assert found[0].columns["text"].read(2).tobytes().decode() == "Maß 2Maß 2"


def test_of_an_encrypted_file_only_what_is_asked_for_is_decrypted(arrow_file: tuple[Path, pa.RecordBatch]) -> None:
    path, _ = arrow_file
    values = read_batches(path, NAME, encryption())[0].columns["tokens"].values
    assert isinstance(values, EncryptedNumbers)
    before = values._content.chunk.cache_info().misses
    values[1_000:1_010]
    assert values._content.chunk.cache_info().misses - before <= 1


def test_a_key_file_is_new_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(base64.b64decode(path.read_text())) == 32
    with pytest.raises(SecurityError, match="is there already"):
        create_key(path)
    found = read_key(SecurityConfig(encrypt=True, key_file=str(path)))
    assert found is not None
    assert found.identifier == key.identifier


@pytest.mark.parametrize("text", ["", "not a key", base64.b64encode(b"short").decode(), "=" * 44, "a" * 43])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    path = _plain(tmp_path / "key", text.encode())
    with pytest.raises(SecurityError, match="holds no key") as told:
        read_key(SecurityConfig(key_file=str(path)))
    assert not text or text not in str(told.value).replace("no key", "")


def test_a_key_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create_key(tmp_path / "key")
    security = SecurityConfig(encrypt=True, key_environment="DRUMLINE_TEST_KEY")
    with pytest.raises(SecurityError, match="the variable DRUMLINE_TEST_KEY is not set"):
        read_key(security)
    monkeypatch.setenv("DRUMLINE_TEST_KEY", (tmp_path / "key").read_text())
    found = read_key(security)
    assert found is not None
    assert found.identifier == key.identifier


def test_a_key_is_in_no_trace_of_a_crash(tmp_path: Path) -> None:
    """Not even in one that shows all variables."""
    create_key(tmp_path / "key")
    foreign = write(tmp_path / "file", b"tokens")
    try:
        Encryption.of(SecurityConfig(encrypt=True, key_file=str(tmp_path / "key"))).read_bytes(foreign, NAME)
    except SecurityError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    text = (tmp_path / "key").read_text().strip()
    assert "MasterKey(" in shown
    for form in (text, repr(base64.b64decode(text)), base64.b64decode(text).hex()):
        assert form not in shown


def test_rotation_rewrites_headers_alone(tmp_path: Path) -> None:
    old, new = encryption(1), encryption(2)
    assert old.key and new.key
    (tmp_path / "store").mkdir()
    write(tmp_path / "store" / "a", content_of(2 * CHUNK_BYTES), "a")
    write(tmp_path / "store" / "b", b"", "b")
    _plain(tmp_path / "store" / "manifest.json", b"{}")
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    hashes = [stored_sha256(tmp_path / "store" / name) for name in "ab"]
    assert rotate(tmp_path / "store", old.key, new.key) == (2, 0)
    assert rotate(tmp_path / "store", old.key, new.key) == (0, 2)
    assert [stored_sha256(tmp_path / "store" / name) for name in "ab"] == hashes
    for name in "ab":
        assert (tmp_path / "store" / name).read_bytes()[HEADER_BYTES:] == before[name][HEADER_BYTES:]
    assert new.read_bytes(tmp_path / "store" / "a", "a") == content_of(2 * CHUNK_BYTES)
    assert (tmp_path / "store" / "manifest.json").read_bytes() == b"{}"
    with pytest.raises(SecurityError, match="and the one that was given"):
        old.read_bytes(tmp_path / "store" / "a", "a")
    with pytest.raises(SecurityError, match="does not open it"):
        rotate(tmp_path / "store", old.key, _third())


def _third() -> MasterKey:
    key = encryption(3).key
    assert key is not None
    return key


def test_a_rotation_that_was_cut_off_anywhere_leaves_a_file_that_opens(tmp_path: Path) -> None:
    """Rotated twice, so that both places were used; after each write that rotation makes the file is opened."""
    old, new = encryption(1), encryption(2)
    assert old.key and new.key
    (tmp_path / "store").mkdir()
    path = write(tmp_path / "store" / "a", b"tokens", "a")
    states, real = [path.read_bytes()], os.pwrite

    def recorded(descriptor: int, content: bytes, offset: int) -> int:
        written = real(descriptor, content, offset)
        states.append(path.read_bytes())
        return written

    os.pwrite = recorded
    try:
        rotate(tmp_path / "store", old.key, new.key)
        rotate(tmp_path / "store", new.key, old.key)
    finally:
        os.pwrite = real
    assert len(states) == 5
    for number, state in enumerate(states):
        path.write_bytes(state)
        opening = [key for key in (old.key, new.key) if _opens(Encryption(key, is_on=True), path)]
        assert opening, f"after {number} writes no key opens it"
        # Begun again, it comes to its end.
        assert rotate(tmp_path / "store", opening[0], _third()) == (1, 0)
        assert _opens(Encryption(_third(), is_on=True), path)
        assert not any(_opens(each, path) for each in (old, new))


def _opens(encryption: Encryption, path: Path) -> bool:
    try:
        return encryption.read_bytes(path, "a") == b"tokens"
    except SecurityError:
        return False


def test_decrypting_a_folder_leaves_nothing_where_a_file_is_not_what_was_written(tmp_path: Path) -> None:
    key = encryption().key
    assert key is not None
    source = tmp_path / "exported"
    (source / "variables").mkdir(parents=True)
    write(source / "variables" / "data", content_of(CHUNK_BYTES + 5), "variables/data")
    _plain(source / "notes.txt", b"as it is")
    assert decrypt(source, tmp_path / "plain", key) == 1
    assert (tmp_path / "plain" / "variables" / "data").read_bytes() == content_of(CHUNK_BYTES + 5)
    assert (tmp_path / "plain" / "notes.txt").read_bytes() == b"as it is"
    changed = bytearray((source / "variables" / "data").read_bytes())
    changed[-1] ^= 1
    (source / "variables" / "data").write_bytes(changed)
    with pytest.raises(SecurityError, match="chunk 1 of 2 is not what was written"):
        decrypt(source, tmp_path / "again", key)
    assert not (tmp_path / "again").exists()
    write(source / "variables" / "data", b"x", "variables/index")
    with pytest.raises(SecurityError, match="another file"):
        decrypt(source, tmp_path / "again", key)


def test_the_verb_takes_keys_from_files_and_the_environment(tmp_path: Path) -> None:
    def drumline(*arguments: str, code: int = 0, **variables: str) -> str:
        command = [sys.executable, "-m", "trainer", "keys", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "keep a copy" in drumline("create", "old.key")
    drumline("create", "new.key")
    opened = Encryption.of(SecurityConfig(encrypt=True, key_file=str(tmp_path / "old.key")))
    (tmp_path / "folder").mkdir()
    opened.write_atomically(tmp_path / "folder" / "file", b"text", "file")
    new = (tmp_path / "new.key").read_text()
    told = drumline("rotate", "--key-file", "old.key", "--new-key-environment", "NEW", "folder", NEW=new)
    assert "1 files have the key" in told
    assert new.strip() not in told
    told = drumline("decrypt", "--key-file", "old.key", "folder", "--output", "plain", code=2)
    assert "does not open" in told or "the one that was given" in told
    drumline("decrypt", "--key-environment", "NEW", "folder", "--output", "plain", NEW=new)
    assert (tmp_path / "plain" / "file").read_bytes() == b"text"
    assert "twice" in drumline("rotate", "--key-file", "new.key", "--new-key-file", "new.key", "folder", code=2)
