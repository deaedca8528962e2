"""The command line: what it answers, how quickly, and with which exit code."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.errors import BackendError, ConfigError, Diverged, DrumlineError, HangDetected, Stopped
from trainer.verbs import training

ROOT = Path(__file__).parents[2]

Replace = Callable[[BaseException], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Makes the verb `train` raise."""

    def replace(error: BaseException) -> None:
        def train(arguments: object) -> int:
            raise error

        monkeypatch.setattr(training, "_train", train)

    return replace


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["one", "two"]), 2),
        (BackendError("one"), 2),
        (Diverged("one"), 3),
        (HangDetected("one"), 70),
        (Stopped("one"), 75),
    ],
)
def test_an_expected_end_is_told_in_a_line_each(
    error: DrumlineError, code: int, failing: Replace, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert main(["train", "any.yaml"]) == code
    assert capsys.readouterr().err.splitlines() == [f"drumline: {line}" for line in str(error).splitlines()]


@pytest.mark.parametrize("error", [ValueError("broken"), DrumlineError("broken")])
def test_a_fault_of_ours_shows_where(error: Exception, failing: Replace, capsys: pytest.CaptureFixture[str]) -> None:
    failing(error)
    assert main(["train", "any.yaml"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_asks_to_be_started_again(failing: Replace) -> None:
    failing(KeyboardInterrupt())
    assert main(["train", "any.yaml"]) == 75


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian", "x"], "did you mean train?"),
        (["train", "x.yaml", "--ferhs"], "unknown option --ferhs; did you mean --fresh?"),
        (["train"], "required: CONFIG"),
        (["check"], "got no CONFIG"),
        (["check", "x.yaml", "--replicas", "0"], "expected a whole number of at least 1"),
        (["launch", "loca", "x.yaml"], "did you mean local?"),
        (["prepare", "x.yaml", "--shard", "4/3"], "expected I/N"),
        (["prepare", "x.yaml", "--shard", "0/0"], "expected I/N"),
        (["predict", "x"], "one of the arguments"),
        (["predict", "x", "--text", "a", "--top-p", "1.5"], "above 0 and up to 1"),
        (["predict", "x", "--text", "a", "--temperature", "nan"], "a number of at least 0"),
        (["evaluate", "nosuch"], "nosuch: not a run"),
        (["evaluate", "nosuch", "more"], "got 'more'"),
        (["predict", "nosuch", "-"], "nosuch: not a run"),
        (["checkpoints", "list", "nosuch"], "nosuch: not a run"),
        (["checkpoints", "lst", "nosuch"], "did you mean list?"),
        ([], "required: VERB"),
    ],
)
def test_a_mistaken_command_line_is_one_line_and_exit_2(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("drumline: ")
    assert expected in lines[0]


def test_overrides_may_stand_on_either_side_of_an_option(small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(small_config), "train.steps=7", "--replicas", "2", "run.name=other"]) == 0
    printed = capsys.readouterr().out
    assert "other, 7 steps" in printed
    assert "2 replicas x 1 micro-batch x 4 sequences" in printed


def test_a_batch_that_does_not_divide_is_refused(small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(small_config), "--replicas", "3"]) == 2
    assert "take 6 or 9" in capsys.readouterr().err


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--schema"]) == 0
    assert "model" in json.loads(capsys.readouterr().out)["properties"]


def test_log_lines_are_plain_and_levels_follow_the_options(small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("trainer.test")
    for option, heard in (("-q", ["warning"]), ("-v", ["debug", "info", "warning"])):
        main([option, "check", str(small_config)])
        capsys.readouterr()
        logger.debug("debug")
        logger.info("info")
        logger.warning("warning")
        assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == heard


def quickest(*arguments: str, limit: float) -> float:
    """Seconds of a whole process, which must not import TensorFlow, pyarrow or numpy.

    The best of three, and of two more where the machine is busy with something else.
    """
    program = (
        "import sys; from trainer.cli import main; code = main(sys.argv[1:]); "
        "assert not {'tensorflow', 'keras', 'numpy', 'pyarrow'} & set(sys.modules), sorted(sys.modules); sys.exit(code)"
    )
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < 5 and min(seconds) >= limit):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["launch", "local", "--help"], ["check", "configs/gpt2-124m.yaml"]]
)
def test_help_and_check_answer_within_half_a_second(arguments: list[str]) -> None:
    assert quickest(*arguments, limit=0.5) < 0.5


def test_help_does_not_wait_for_pydantic() -> None:
    program = "import sys; from trainer.cli import main; main(['--help']); sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_has_seen_enough_hears_no_complaint() -> None:
    command = f"{sys.executable} -m trainer check --schema | head -c 10 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_process_of_a_container_obeys_sigterm(small_config: Path) -> None:
    """There the system does nothing by itself: without a handler a pod would sit out its whole grace period."""
    new_container = ["unshare", "--pid", "--fork", "--kill-child"]
    tried = subprocess.run([*new_container, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no first process can be started here: {tried.stderr.strip()}")
    program = (
        "import sys, time; from trainer import check, cli; "
        "check.report = lambda *_: (print('at work', flush=True), time.sleep(60)); sys.exit(cli.main(['check', sys.argv[1]]))"
    )
    command = [*new_container, sys.executable, "-c", program, str(small_config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as outside:
        assert outside.stdout is not None and outside.stdout.readline() == "at work\n"
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert outside.wait(10.0) == 75
