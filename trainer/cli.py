"""The command line: each verb parses, loads and calls.

Here alone logging gets a handler, errors become exit codes, and, so that TensorFlow does not talk over us, one
environment variable gets a default. What a verb needs is imported when it is called: `--help` and `check` do without
TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO

from launch.cli import add_verbs as add_launch_verbs
from launch.cli import positive
from launch.doctor import add_arguments as add_doctor_arguments
from trainer.arguments import Parser, Verbs, not_negative, probability, shard, temperature
from trainer.errors import CheckpointError, DataError, DrumlineError, Stopped, UserError

if TYPE_CHECKING:
    from trainer.run_directory import RunDirectory

_EPILOG = """exit codes:
  0 done; 1 a fault of ours; 2 a mistake in what was asked for; 3 training diverged;
  70 a hang was detected; 75 stopped or interrupted: start it again and it goes on"""

_NO_DRIVER = re.compile(r"^E\d{4} .*failed call to cuInit")


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
    _add_prepare(verbs, common)
    _add_check(verbs, common)
    _add_train(verbs, common)
    _add_evaluate(verbs, common)
    _add_predict(verbs, common)
    _add_verify(verbs, common)
    _add_checkpoints(verbs, common)
    _add_doctor(verbs, common)
    add_launch_verbs(verbs, common)
    return parser


def _add_prepare(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("prepare", help="text -> tokenizer and token store; safe to repeat", parents=[common])
    _add_config(parser)
    parser.add_argument("--shard", type=shard, metavar="I/N", help="only the I-th of N parts of the work; 0 is the N-th")
    parser.add_argument("--merge", action="store_true", help="make the store of the shards; with --shard, if it is the last")
    parser.add_argument("--processes", type=positive, metavar="N", help="how many work at once (default: a core each)")
    parser.set_defaults(handler=_prepare, parser=parser)


def _prepare(arguments: argparse.Namespace) -> int:
    from trainer.config_io import load_config
    from trainer.data.prepare import prepare

    config = load_config(arguments.config, arguments.overrides)
    prepare(config, shard=arguments.shard, merge=arguments.merge, num_processes=arguments.processes)
    return 0


def _add_check(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("check", help="validate; parameters, memory, batches, epochs; starts nothing", parents=[common])
    _add_config(parser, nargs="?")
    parser.add_argument("--replicas", type=positive, metavar="N", help="for so many (default: as configured, or 1)")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of configurations, for editors")
    parser.set_defaults(handler=_check, parser=parser)


def _check(arguments: argparse.Namespace) -> int:
    from trainer.config_io import config_schema, load_config

    if arguments.schema:
        print(json.dumps(config_schema(), indent=2))
        return 0
    if arguments.config is None:
        raise UserError("check: got no CONFIG, expected a YAML file, or --schema")
    from trainer.check import report

    config = load_config(arguments.config, arguments.overrides)
    print(report(config, arguments.replicas or config.distribution.num_replicas or 1))
    return 0


def _add_train(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("train", help="train; go on by itself where the run has a checkpoint", parents=[common])
    _add_config(parser)
    parser.add_argument("--fresh", action="store_true", help="refuse to go on from a checkpoint")
    parser.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="go on although this setting or section differs from the checkpoint's and changes what its numbers mean",
    )
    parser.set_defaults(handler=_train, parser=parser)


def _train(arguments: argparse.Namespace) -> int:
    from trainer.config_io import load_config

    # Before TensorFlow is imported, which takes seconds.
    config = load_config(arguments.config, arguments.overrides)
    _import_tensorflow()
    from trainer.loop import train

    train(config, fresh=arguments.fresh, allowed_changes=arguments.allow_change, command_line=arguments.command_line)
    return 0


def _add_evaluate(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("evaluate", help="validation loss of a run's checkpoint, as JSON", parents=[common])
    _add_run(parser)
    parser.add_argument("--batches", type=positive, metavar="N", help="how many (default: as the run's config says)")
    parser.set_defaults(handler=_evaluate, parser=parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    run = _open_run(arguments.run).path
    _import_tensorflow()
    from trainer.evaluate import evaluate_run

    print(json.dumps(evaluate_run(run, arguments.checkpoint, arguments.batches)))
    return 0


def _add_predict(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("predict", help="go on from prompts; JSON lines out", parents=[common])
    _add_run(parser)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("stdin", nargs="?", choices=["-"], metavar="-", help="a prompt on each line of standard input")
    prompts.add_argument("--text", nargs="+", action="extend", metavar="TEXT", help="prompts")
    prompts.add_argument("--input", type=Path, metavar="FILE", help="a prompt on each line")
    # Defaults stand in `SamplingConfig`.
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="how many to generate at most")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--temperature", type=temperature, metavar="X", help="how bold the choice is; 0 is greedy")
    choice.add_argument("--greedy", dest="temperature", action="store_const", const=0.0, help="always the likeliest token")
    parser.add_argument("--top-k", type=positive, metavar="N", help="choose among the N likeliest tokens")
    parser.add_argument("--top-p", type=probability, metavar="X", help="among the likeliest of total probability X")
    parser.add_argument("--samples", type=positive, metavar="N", help="how many for each prompt")
    parser.add_argument("--seed", type=not_negative, metavar="N", help="of the random choices")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="how many texts at once")
    parser.set_defaults(handler=_predict, parser=parser)


def _predict(arguments: argparse.Namespace) -> int:
    run = _open_run(arguments.run).path
    prompts = _prompts(arguments)
    from trainer.config import SamplingConfig

    _import_tensorflow()
    from trainer.predict import predict_run

    given = {name: getattr(arguments, name) for name in SamplingConfig.model_fields}
    sampling = SamplingConfig.model_validate({name: value for name, value in given.items() if value is not None})
    for prediction in predict_run(run, prompts, sampling, arguments.checkpoint):
        print(json.dumps(prediction, ensure_ascii=False), flush=True)
    return 0


def _prompts(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.text:
        return iter(arguments.text)
    if arguments.stdin:
        return _lines(sys.stdin.buffer, "standard input")
    try:
        return _lines(arguments.input.open("rb"), str(arguments.input))
    except OSError as error:
        raise DataError(f"--input: {arguments.input}: {error.strerror}") from None


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    with file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise DataError(f"{name}:{number}: got the byte 0x{byte:02x}, expected text in UTF-8") from None


def _add_verify(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("verify", help="compare what a run consumed with the plan, sample by sample", parents=[common])
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.set_defaults(handler=_verify, parser=parser)


def _verify(arguments: argparse.Namespace) -> int:
    path = _open_run(arguments.run).path
    _import_tensorflow()
    from trainer.verify import verify_run

    print(f"{path}: {verify_run(path)}")
    return 0


def _add_checkpoints(verbs: Verbs, common: Parser) -> None:
    checkpoints = verbs.add_parser("checkpoints", help="list, verify or prune a run's checkpoints", parents=[common])
    actions = checkpoints.add_subparsers(metavar="ACTION", required=True)
    parsers = {}
    for name, handler, description in (
        ("list", _list_checkpoints, "what there is, by what the manifests say"),
        ("verify", _verify_checkpoints, "read every byte and compare the hashes"),
        ("prune", _prune_checkpoints, "delete those that need not be kept"),
    ):
        parsers[name] = parser = actions.add_parser(name, help=description, parents=[common])
        parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
        parser.set_defaults(handler=handler, parser=parser)
    prune = parsers["prune"]
    prune.add_argument("--keep-last", type=positive, metavar="N", help="of the newest (default: as the run's config says)")
    prune.add_argument("--keep-every", type=positive, metavar="N", help="those at multiples of N steps")
    prune.add_argument("--keep-best", type=not_negative, metavar="N", help="of the best")


def _list_checkpoints(arguments: argparse.Namespace) -> int:
    from trainer.checkpoint import list_checkpoints

    run = _open_run(arguments.run)
    print(f"{'step':>10}  {'bytes':>15}  {'validation loss':>15}  state")
    for info in list_checkpoints(run.checkpoints):
        loss = f"{info.validation['loss']:.4f}" if "loss" in info.validation else ""
        print(f"{info.step:>10}  {info.num_bytes:>15,}  {loss:>15}  {info.problem or 'complete'}")
    return 0


def _verify_checkpoints(arguments: argparse.Namespace) -> int:
    from trainer.checkpoint import list_checkpoints, verify_checkpoint

    infos = list_checkpoints(_open_run(arguments.run).checkpoints)
    problems = {}
    for info in infos:
        problem = info.problem or verify_checkpoint(info.path)
        if problem is None:
            print(f"{info.path}: good")
        else:
            problems[info.path] = problem
    if problems:
        raise CheckpointError("\n".join(f"{path}: {problem}" for path, problem in problems.items()))
    if not infos:
        raise CheckpointError(f"{arguments.run}: has no checkpoint")
    return 0


def _prune_checkpoints(arguments: argparse.Namespace) -> int:
    from trainer.checkpoint import list_checkpoints, prune_checkpoints
    from trainer.checkpoint_lock import DirectoryLock
    from trainer.config_io import load_config

    run = _open_run(arguments.run)
    given = {name: getattr(arguments, name) for name in ("keep_last", "keep_every", "keep_best")}
    changes = {name: value for name, value in given.items() if value is not None}
    policy = load_config(run.config).checkpoint.model_copy(update=changes)
    try:
        with DirectoryLock(run.checkpoints, f"drumline checkpoints prune {run.path}"):
            deleted = prune_checkpoints(run.checkpoints, policy)
    except OSError as error:
        raise CheckpointError(f"{run.checkpoints}: a checkpoint cannot be deleted: {error}") from error
    for path in deleted:
        print(f"{path}: deleted")
    print(f"{len(list_checkpoints(run.checkpoints))} checkpoints stay")
    return 0


def _add_doctor(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("doctor", help="what would stop a run here, before it starts", parents=[common])
    _add_config(parser, nargs="?")
    add_doctor_arguments(parser)
    parser.set_defaults(handler=_doctor, parser=parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from launch.doctor import examine
    from trainer import preflight

    return examine(arguments, preflight.check_packages, preflight.checks)


def _open_run(path: Path) -> RunDirectory:
    """A run that has been started; complains of anything else before TensorFlow is imported."""
    from trainer.run_directory import open_run

    run, _ = open_run(path)
    return run


def _add_config(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs=nargs, help="the YAML file of the run")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="wins over the file")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_argument("--checkpoint", default="latest", metavar="STEP|best|latest", help="which one (default: latest)")


def _import_tensorflow() -> None:
    """Imports TensorFlow without the notices that its C++ writes whatever the settings say; all else it says is passed on.

    Where there is no GPU, it is asked for them here: what it then says of a driver that is not there is no news either.
    """
    from launch.local import TENSORFLOW_NOTICE
    from launch.machine import find_machine

    has_gpu = bool(find_machine().gpus)
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            tensorflow = importlib.import_module("tensorflow")
            if not has_gpu:
                tensorflow.config.list_physical_devices("GPU")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines(keepends=True):
                is_notice = TENSORFLOW_NOTICE.match(line) or (not has_gpu and _NO_DRIVER.match(line))
                if not is_notice:
                    sys.stderr.write(line)


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
