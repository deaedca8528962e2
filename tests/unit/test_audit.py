"""`make audit`: of the packages that are installed here, and of an index that the tests serve themselves."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from install import audit
from launch.machine import free_ports

NUMPY = "numpy==2.4.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"


@pytest.fixture
def index() -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of an index, and what it answers by path; 404 to all else."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answers.get(self.path)).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


def lock(folder: Path, text: str) -> str:
    path = folder / "some.lock"
    path.write_text(text)
    return str(path)


def vulnerability(**changes: Any) -> Mapping[str, Any]:
    return {"id": "PYSEC-1", "fixed_in": ["9.9"], "summary": "reads what it should not", "withdrawn": None, **changes}


def test_a_lock_is_read_as_pip_reads_it(tmp_path: Path) -> None:
    text = f"{NUMPY}# a comment\ncolorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:22\n"
    assert audit.read_lock(Path(lock(tmp_path, text))) == [audit.Package("numpy", "2.4.0")]


def test_what_is_locked_and_installed_is_under_permissive_licences(capsys: pytest.CaptureFixture[str]) -> None:
    packages = audit.read_lock(audit.LOCKS[0])
    assert len(packages) > 80
    assert audit.audit_licences(packages) == 0, capsys.readouterr().out


def test_another_licence_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, line in (("strict-thing", "License-Expression: GPL-3.0-only"), ("silent-thing", "Summary: no licence")):
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{line}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    packages = [audit.Package(name, "1.0") for name in ("numpy", "silent-thing", "strict-thing", "thing-that-is-not-here")]
    assert audit.audit_licences(packages) == 2
    printed = capsys.readouterr().out
    assert "licence: strict-thing 1.0: got GPL-3.0-only, expected one of" in printed
    assert "licence: silent-thing 1.0: got none" in printed
    assert "not installed here: thing-that-is-not-here" in printed


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("(MIT OR GPL-3.0-only) AND MIT", False),
        ("", False),
    ],
)
def test_expressions(expression: str, expected: bool) -> None:
    assert audit.is_permissive(expression) is expected


def test_known_vulnerabilities_are_found(
    tmp_path: Path, index: tuple[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, answers = index
    path = "/numpy/2.4.0/json"
    answers[path] = {"vulnerabilities": [vulnerability(), vulnerability(id="PYSEC-2", withdrawn="2026-01-01T00:00:00Z")]}
    assert audit.main([lock(tmp_path, NUMPY), "--index", address]) == 1
    printed = capsys.readouterr().out
    assert "vulnerability: numpy 2.4.0: PYSEC-1, mended in 9.9: reads what it should not" in printed
    assert "PYSEC-2" not in printed
    answers[path] = {"vulnerabilities": []}
    assert audit.main([lock(tmp_path, NUMPY), "--index", address]) == 0


def test_an_index_that_is_out_of_reach_is_no_clean_bill(
    tmp_path: Path, index: tuple[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    # At the first nobody listens; the second does not know numpy.
    for address, why in ((f"http://127.0.0.1:{free_ports(1)[0]}", "is out of reach"), (index[0], "answers 404 Not Found")):
        assert audit.main([lock(tmp_path, NUMPY), "--index", address]) == 75
        assert f"NOT LOOKED FOR in 1 packages, such as numpy 2.4.0: {address} {why}" in capsys.readouterr().out
    index[1]["/numpy/2.4.0/json"] = ["something else"]
    assert audit.main([lock(tmp_path, NUMPY), "--index", index[0]]) == 75
    assert "is not PyPI's JSON API" in capsys.readouterr().out
