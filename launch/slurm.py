"""`launch slurm`: prints an sbatch script that runs one worker a node, and queues itself again where it was stopped."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from trainer.config import Config

AnyParser = TypeVar("AnyParser", bound=argparse.ArgumentParser)


def add_verbs(verbs: argparse._SubParsersAction[AnyParser], common: AnyParser) -> None:
    """Adds `slurm` to what can be launched."""
    from launch.cli import not_negative, positive

    parser = verbs.add_parser("slurm", help="an sbatch script, which queues itself again when it was stopped", parents=[common])
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of the run, where all nodes see it")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="wins over the file")
    parser.add_argument("--nodes", type=positive, required=True, metavar="N", help="a worker each")
    parser.add_argument("--gpus-per-node", type=not_negative, default=0, metavar="G", help="a rank each (default: 0)")
    parser.add_argument(
        "--ranks-per-node", type=positive, metavar="N", help="of each worker (default: a rank a GPU, or 1 without GPUs)"
    )
    parser.add_argument("--cpus", type=positive, default=8, metavar="N", help="cores of each node (default: 8)")
    parser.add_argument("--memory", type=_word, metavar="SIZE", help="of each node, as sbatch has it (default: Slurm's)")
    parser.add_argument("--time", type=_word, metavar="TIME", help="limit, as sbatch has it (default: the partition's)")
    parser.add_argument("--partition", type=_word, metavar="NAME", help="(default: Slurm's)")
    parser.add_argument("--account", type=_word, metavar="NAME", help="(default: yours)")
    parser.add_argument("--name", type=_word, metavar="NAME", help="of the job (default: run.name)")
    parser.add_argument(
        "--grace-seconds",
        type=positive,
        metavar="S",
        help="to save before the time limit (default: from saves of the run that are here)",
    )
    parser.add_argument("--sbatch", type=_line, action="append", default=[], metavar="OPTION", help="any other; again for more")
    parser.add_argument(
        "--setup",
        type=_line,
        action="append",
        default=[],
        metavar="LINE",
        help="of shell before the workers start; again for more",
    )
    parser.add_argument("--dry-run", action="store_true", help="the same: printing starts nothing, and no secret is in it")
    parser.set_defaults(handler=_launch, parser=parser)


@dataclass(frozen=True)
class Options:
    """What is asked of Slurm. `more` are other options of sbatch, `setup` lines of shell that come first."""

    name: str
    nodes: int
    ranks: int
    gpus: int
    cpus: int
    grace_seconds: int
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    more: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


def render_script(config: Config, config_path: Path, options: Options, overrides: Sequence[str]) -> str:
    """Raises ConfigError where the batch does not divide, BackendError for a backend that is one process."""
    from trainer.config import plan_batches
    from trainer.errors import BackendError

    num_ranks = options.nodes * options.ranks
    if config.distribution.backend == "mirrored" or (config.distribution.backend == "single" and num_ranks > 1):
        raise BackendError(
            f"distribution.backend: got {config.distribution.backend} for {num_ranks} ranks on {options.nodes} nodes, expected "
            "auto, horovod or multiworker"
        )
    plan_batches(config.train, num_ranks)
    words = shlex.join([str(config_path), *overrides])
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in _sbatch_options(options)),
        setup="".join(f"{line}\n" for line in options.setup),
        run=shlex.quote(str(Path(config.run.directory) / config.run.name)),
        ranks=options.ranks,
        cpus=options.cpus,
        doctor=f"drumline doctor {words} --gang",
        worker=f"drumline launch worker {words}",
    )


def _sbatch_options(options: Options) -> list[str]:
    chosen = {
        "--job-name": options.name,
        "--nodes": options.nodes,
        "--ntasks-per-node": 1,
        "--cpus-per-task": options.cpus,
        "--mem": options.memory,
        "--gpus-per-node": options.gpus or None,
        "--time": options.time,
        "--partition": options.partition,
        "--account": options.account,
        "--signal": f"B:USR1@{options.grace_seconds}",
        "--open-mode": "append",
    }
    return [*(f"{name}={value}" for name, value in chosen.items() if value is not None), "--requeue", *options.more]


# `scancel --signal` reaches the steps and not this script. srun itself would end them at once at SIGTERM.
# A job that is cancelled gets SIGTERM, here too, and must not come back.
_SCRIPT = r"""#!/bin/bash
{options}

set -u
{setup}
run={run}
secret="$run/.secret-$SLURM_JOB_ID"
mkdir -p "$run" || exit 2
rm -f "$secret"
(umask 077 && head -c 32 /dev/urandom | base64 >"$secret") || exit 2
trap 'rm -f "$secret"' EXIT

export DRUMLINE_SECRET_FILE=$secret DRUMLINE_RANKS={ranks}

cancelled=
signalled=
trap 'cancelled=1 signalled=1' TERM
# The time limit is near: the workers save and leave with 75.
trap 'signalled=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

on_each_node() {{ # runs a command on all nodes; a signal that comes meanwhile does not end the waiting
    srun --ntasks-per-node=1 --cpus-per-task={cpus} --kill-on-bad-exit=1 "$@" &
    local step=$!
    while :; do
        signalled=
        wait "$step"
        code=$?
        if [ -z "$signalled" ] || [ "$code" -le 128 ]; then break; fi
    done
}}

on_each_node {doctor}
if [ "$code" -eq 0 ]; then
    on_each_node {worker}
fi

rm -f "$secret"
if [ "$code" -eq 75 ] && [ -z "$cancelled" ]; then
    echo "Stopped before the end: queued again."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _launch(arguments: argparse.Namespace) -> int:
    from launch.grace import grace_seconds
    from trainer.config_io import load_config
    from trainer.errors import UserError

    config = load_config(arguments.config, arguments.overrides)
    ranks = arguments.ranks_per_node or arguments.gpus_per_node or 1
    if arguments.gpus_per_node and ranks > arguments.gpus_per_node:
        raise UserError(
            f"--ranks-per-node: got {ranks}, expected at most {arguments.gpus_per_node}, a GPU of --gpus-per-node each"
        )
    options = Options(
        name=arguments.name or config.run.name,
        nodes=arguments.nodes,
        ranks=ranks,
        gpus=arguments.gpus_per_node,
        cpus=arguments.cpus,
        grace_seconds=arguments.grace_seconds or grace_seconds(config),
        memory=arguments.memory,
        time=arguments.time,
        partition=arguments.partition,
        account=arguments.account,
        more=tuple(arguments.sbatch),
        setup=tuple(arguments.setup),
    )
    print(render_script(config, arguments.config, options, arguments.overrides), end="")
    return 0


def _word(text: str) -> str:
    """What stands in one word of an `#SBATCH` line."""
    if not re.fullmatch(r"[\w.,:+@/-]+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected letters, digits and punctuation, no spaces")
    return text


def _line(text: str) -> str:
    if not text.strip() or "\n" in text:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one line")
    return text
