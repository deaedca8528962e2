"""The command line: main, the parser that the verbs are put together in, logging, and exit codes.

Here alone logging gets a handler, errors become exit codes, and, so that TensorFlow does not talk over us, one
environment variable gets a default. What a verb needs is imported when it is called: `--help` and `check` do without
TensorFlow.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from launch.cli import add_verbs as add_launch_verbs
from trainer.arguments import Parser
from trainer.errors import DrumlineError, Stopped
from trainer.verbs.checkpoints import add_checkpoints
from trainer.verbs.evaluation import add_evaluate, add_memorization
from trainer.verbs.export import add_export
from trainer.verbs.keys import add_keys
from trainer.verbs.prediction import add_predict
from trainer.verbs.preparation import add_check, add_doctor, add_prepare
from trainer.verbs.search import add_search
from trainer.verbs.training import add_train, add_verify

_EPILOG = """exit codes:
  0 done; 1 a fault of ours; 2 a mistake in what was asked for; 3 training diverged;
  70 a hang was detected; 75 stopped or interrupted: start it again and it goes on"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit code."""
    # Read by TensorFlow's C++: 2 leaves out information and warnings, all but a few notices at import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command_line = list(sys.argv[1:] if argv is None else argv)
    if os.getpid() == 1:
        # In a container the system does nothing by itself at a signal to the first process.
        signal.signal(signal.SIGTERM, _leave)
    try:
        arguments = _parser().parse(command_line)
        _set_up_logging(verbose="verbose" in arguments, quiet="quiet" in arguments)
        arguments.command_line = ["drumline", *command_line]
        code = int(arguments.handler(arguments))
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # of argparse, which has said why
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        # The reader of our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("drumline: interrupted", file=sys.stderr)
        return Stopped.exit_code
    except DrumlineError as error:
        if error.exit_code == DrumlineError.exit_code:
            traceback.print_exc()
        else:
            for line in str(error).splitlines():
                print(f"drumline: {line}", file=sys.stderr)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(Stopped.exit_code)


def _parser() -> Parser:
    common = Parser(add_help=False)
    # Absent unless given: a default of the verb's parser would undo what stood before the verb.
    common.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="say more")
    common.add_argument("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="say only what is wrong")
    parser = Parser(
        prog="drumline",
        description="Train language models in TensorFlow on one device, many GPUs or a cluster, from one YAML file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add_prepare(verbs, common)
    add_check(verbs, common)
    add_train(verbs, common)
    add_evaluate(verbs, common)
    add_memorization(verbs, common)
    add_predict(verbs, common)
    add_export(verbs, common)
    add_verify(verbs, common)
    add_checkpoints(verbs, common)
    add_search(verbs, common)
    add_keys(verbs, common)
    add_doctor(verbs, common)
    add_launch_verbs(verbs, common)
    return parser


def _set_up_logging(verbose: bool, quiet: bool) -> None:
    """Plain lines on stderr. The level is the root logger's; other packages are heard only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.name = "drumline"
    root = logging.getLogger()
    for former in [each for each in root.handlers if each.name == handler.name]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    for package in ("absl", "tensorflow", "keras", "h5py", "jax"):
        logging.getLogger(package).setLevel(logging.WARNING)
