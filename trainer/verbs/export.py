"""`drumline export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.arguments import Parser, Verbs, add_run
from trainer.verbs.start import import_tensorflow, started_run


def add_export(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser("export", help="a run's model for others: transformers, TensorFlow Serving", parents=[common])
    add_run(parser)
    parser.add_argument(
        "--format", required=True, choices=["huggingface", "savedmodel"], help="a folder for transformers, or a SavedModel"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder to write; a new or empty one")
    parser.set_defaults(handler=_export, parser=parser)


def _export(arguments: argparse.Namespace) -> int:
    from trainer.encryption.files import Encryption
    from trainer.pretrained.huggingface import check_format, write_huggingface
    from trainer.pretrained.new_folder import new_folder, refuse_existing
    from trainer.pretrained.trained import read_run
    from trainer.run_directory import open_run

    path = started_run(arguments.run).path
    # What can be told is told before checkpoints are read and TensorFlow is imported, which takes seconds.
    refuse_existing(arguments.output)
    _, config = open_run(path)
    if arguments.format == "huggingface":
        check_format(config)
    encryption = Encryption.of(config.security)
    run = read_run(path, arguments.checkpoint)
    with new_folder(arguments.output) as folder:
        if arguments.format == "huggingface":
            write_huggingface(run, folder, encryption)
        else:
            import_tensorflow()
            from trainer.pretrained.saved_model import write_saved_model

            write_saved_model(run, folder, encryption)
    how = ", encrypted" if encryption.is_on else ""
    print(f"{arguments.output}: {arguments.format}, of step {run.step}{how}")
    return 0
