"""Saving in the background costs training little: a copy of the state, and less time than saving in the foreground."""

from __future__ import annotations

import re

import pytest

from tests.faults.conftest import Figures
from tests.training import ROOT, checked, run_python


@pytest.mark.faults
def test_saving_in_the_background_loses_less_than_in_the_foreground(figures: Figures) -> None:
    """Briefly, and so with bounds of twice the targets: the machine may do other things as well."""
    rounds = ("--rounds", "3", "--saves", "3")
    printed = checked(run_python(ROOT / "benchmarks" / "checkpoint_saving.py", *rounds, timeout=600.0)).stdout
    blocked, lost = (
        float(re.search(pattern, printed)[1])  # type: ignore[index]
        for pattern in (r"blocked / copy +(\S+)", r"lost, background / foreground +(\S+)")
    )
    print(printed)
    figures.add("background saving", **{"blocked / copy (target 1.5)": blocked, "lost, background / foreground (0.5)": lost})
    assert blocked <= 3.0
    assert lost <= 1.0
