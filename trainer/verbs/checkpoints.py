"""`drumline checkpoints`: list, verify and prune."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.cli import positive
from trainer.arguments import Parser, Verbs, not_negative
from trainer.errors import CheckpointError
from trainer.verbs.start import started_run


def add_checkpoints(verbs: Verbs, common: Parser) -> None:
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

    run = started_run(arguments.run)
    print(f"{'step':>10}  {'bytes':>15}  {'validation loss':>15}  state")
    for info in list_checkpoints(run.checkpoints):
        loss = f"{info.validation['loss']:.4f}" if "loss" in info.validation else ""
        print(f"{info.step:>10}  {info.num_bytes:>15,}  {loss:>15}  {info.problem or 'complete'}")
    return 0


def _verify_checkpoints(arguments: argparse.Namespace) -> int:
    from trainer.checkpoint import list_checkpoints, verify_checkpoint

    infos = list_checkpoints(started_run(arguments.run).checkpoints)
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

    run = started_run(arguments.run)
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
