"""A rank that is killed on another machine, or a machine that is cut off, is named, and nothing is left on either."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.gang import LIMIT_SECONDS, Gang
from tests.faults.outcome import last_step
from tests.faults.test_stuck_and_lost_ranks import HUNG, two_ranks
from tests.rehearsal.privacy import find_obstacle
from tests.training import run_path, write_config

pytestmark = pytest.mark.processes
PROGRAM = Path(__file__).with_name("two_machines.py")
# Of the second machine: its worker says what became of its rank, 137; without one it is the rank itself that was killed.
KILLED = {"horovod": 137, "multiworker": -signal.SIGKILL}


def kill(gang: Gang) -> None:
    gang.send(1, signal.SIGKILL)


def cut(gang: Gang) -> None:
    (gang.directory / "cut").touch()


@pytest.mark.parametrize("backend", ["horovod", "multiworker"])
@pytest.mark.parametrize("harm", [kill, cut], ids=lambda harm: harm.__name__)
def test_the_other_machine_leaves_and_says_who_is_lost(
    store: Path, figures: Figures, harm: Callable[[Gang], None], backend: str
) -> None:
    obstacle = find_obstacle()
    if obstacle is not None:
        pytest.skip(f"two machines in network namespaces {obstacle}")
    config = two_ranks(store, f"{harm.__name__}-{backend}", backend)
    file = write_config(config, store / f"{config.run.name}.yaml")
    with Gang([sys.executable, "-m", "tests.faults.two_machines", str(file), "{directory}", backend], store) as gang:
        gang.wait_until(lambda: last_step(run_path(config)) >= 20)
        since = time.monotonic()
        harm(gang)
        assert gang.wait(LIMIT_SECONDS) == 0
        seconds = time.monotonic() - since
        output, exit_codes = gang.output, gang.rank_exit_codes
    if harm is kill:
        assert exit_codes == {0: HUNG, 1: KILLED[backend]}, output[-3000:]
        assert re.search(r"rank 1 of 2 .*is gone: its connection closed during training, steps \d+", output)
    else:
        assert exit_codes == {0: HUNG, 1: HUNG}, output[-3000:]
        for other in (0, 1):
            assert re.search(rf"did not arrive: rank {other} .*not heard of for \d+ s, last in training, steps \d+", output)
    what = {kill: "kill -9 on another machine", cut: "a machine is cut off"}[harm]
    figures.add(what, **{f"{backend}: seconds until all were gone": seconds})
