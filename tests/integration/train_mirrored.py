"""Trains under `mirrored` on as many logical CPU devices as each configuration asks for; for tests."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.config_io import load_config


def main(paths: list[str]) -> None:
    configs = [load_config(Path(path)) for path in paths]
    import tensorflow as tf

    from trainer.distribution.devices import split_cpu
    from trainer.loop import train

    split_cpu(max(config.distribution.num_replicas or 1 for config in configs))
    for config in configs:
        tf.distribute.MirroredStrategy._collective_key_base += 100_000
        train(config)


if __name__ == "__main__":
    main(sys.argv[1:])
