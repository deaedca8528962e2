"""How long a run needs to stop: as long as its saves took where it ran before."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from trainer.config import Config

logger = logging.getLogger(__name__)

_UNKNOWN_SAVE_SECONDS = 40.0  # of a model that nobody has saved yet: a few gigabytes to a shared file system
_MARGIN_SECONDS = 30.0  # to agree on the stop, for the last update, and to end


def grace_seconds(config: Config) -> int:
    """Seconds from SIGTERM on: a save may be under way, the call of TensorFlow that runs goes on to its end, and then all
    is saved once more."""
    run = Path(config.run.directory) / config.run.name
    measured = _longest_save(run / "checkpoints") if config.checkpoint.directory is None else None
    seconds = math.ceil(config.train.loop_seconds + 2 * (measured or _UNKNOWN_SAVE_SECONDS) + _MARGIN_SECONDS)
    if measured is None:
        logger.info("A stop is given %d s: how long a save takes is not known here; --grace-seconds sets it.", seconds)
    else:
        logger.info("A stop is given %d s: the longest save in %s took %.1f s.", seconds, run, measured)
    return seconds


def _longest_save(checkpoints: Path) -> float | None:
    """Of the checkpoints that are there, by their manifests; None where none says."""
    found = []
    for manifest in checkpoints.glob("step-*/manifest.json"):
        try:
            found.append(float(json.loads(manifest.read_bytes())["save_seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found, default=None)
