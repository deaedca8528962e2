"""Training, and the proof of what it consumed: `train` and `verify`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.arguments import Parser, Verbs, add_config
from trainer.verbs.start import import_tensorflow, started_run


def add_train(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("train", help="train; go on by itself where the run has a checkpoint", parents=[common])
    add_config(parser)
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
    import_tensorflow()
    from trainer.loop import train

    train(config, fresh=arguments.fresh, allowed_changes=arguments.allow_change, command_line=arguments.command_line)
    return 0


def add_verify(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("verify", help="compare what a run consumed with the plan, sample by sample", parents=[common])
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.set_defaults(handler=_verify, parser=parser)


def _verify(arguments: argparse.Namespace) -> int:
    path = started_run(arguments.run).path
    import_tensorflow()
    from trainer.verify import verify_run

    print(f"{path}: {verify_run(path)}")
    return 0
