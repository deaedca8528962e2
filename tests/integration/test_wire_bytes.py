"""An update sends each gradient once, however many micro-batches it has and however often a weight is used."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.training import ROOT, checked, json_lines, run_python


@pytest.mark.processes
def test_a_rank_sends_no_more_bytes_for_an_update_than_a_ring_needs(tmp_path: Path) -> None:
    pytest.importorskip("horovod")
    try:
        subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces to count bytes in: {error}")
    rows = tmp_path / "rows.jsonl"
    checked(run_python(ROOT / "benchmarks" / "wire_bytes.py", "--small", "--rounds", "1", "--rows", rows))

    sent = {row["what"].removeprefix("bytes sent for an update, "): row["figure"] for row in json_lines(rows)}
    # Horovod's own messages weigh more beside gradients as small as these, the more so on a busy machine.
    for accumulation in ("accumulation 1", "accumulation 16"):
        assert 0.99 < sent[accumulation] < 1.1
        assert 0.49 < sent[f"{accumulation}, float16 wire"] < 0.6
