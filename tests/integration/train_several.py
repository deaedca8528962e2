"""Trains the configurations it is given, one after another, in one process; for tests, since TensorFlow starts slowly."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from trainer.config_io import load_config


def main(paths: list[str]) -> None:
    configs = [load_config(Path(path)) for path in paths]
    from trainer.loop import train

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for config in configs:
        train(config)


if __name__ == "__main__":
    main(sys.argv[1:])
