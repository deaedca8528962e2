"""The verb `launch kubernetes`, with or without `prepare` or `search` behind it. Nothing of the renderer is imported before."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from launch.kubernetes.objects import Manifest
    from launch.kubernetes.options import Claim, Options, Placement, Preparation, Searching, Training
    from trainer.config import Config, SearchConfig

logger = logging.getLogger(__name__)

AnyParser = TypeVar("AnyParser", bound=argparse.ArgumentParser)

_TRAIN, _PREPARE, _SEARCH = "train", "prepare", "search"
_MASK = "(masked)"
_TOKEN_BYTES = 32
_SHARED_MEMORY = "8Gi"
# What each of the three needs, and which of the options belong to some of them alone.
_NEEDED = {_TRAIN: "nodes", _PREPARE: "shards", _SEARCH: "pods"}
_BELONGING = {
    **dict.fromkeys(("nodes", "ranks_per_node", "kind", "secret", "no_tensorboard"), (_TRAIN,)),
    **dict.fromkeys(("gpus_per_node", "shared_memory", "grace_seconds"), (_TRAIN, _SEARCH)),
    **dict.fromkeys(("runs_claim", "runs_size"), (_TRAIN, _SEARCH)),
    "shards": (_PREPARE,),
    "pods": (_SEARCH,),
}
_DESCRIPTION = """Prints the manifests of a training, for `kubectl apply -f -`.
With the word `prepare` before CONFIG it prints those of `drumline prepare` instead, in shards over pods; with the word
`search` those of `drumline search`, whose trials the pods share."""


def add_verbs(verbs: argparse._SubParsersAction[AnyParser], common: AnyParser) -> None:
    """Adds `kubernetes` to what can be launched."""
    parser = verbs.add_parser(
        "kubernetes",
        help="manifests of a Job, JobSet or MPIJob; `kubernetes prepare` for the data, `kubernetes search` for a search",
        description=_DESCRIPTION,
        parents=[common],
    )
    parser.add_argument("config", metavar="[prepare|search] CONFIG", help="the YAML file of the run")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="wins over the file")
    _add_job_arguments(parser)
    _add_volume_arguments(parser)
    _add_training_arguments(parser)
    _add_placement_arguments(parser)
    parser.set_defaults(handler=_launch, parser=parser)


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.cli import not_negative, positive

    parser.add_argument(
        "--image", required=True, type=_lazily("read_image"), metavar="IMAGE", help="that k8s/Dockerfile builds"
    )
    parser.add_argument("--name", metavar="NAME", help="of the job and, with endings, of all else (default: from run.name)")
    parser.add_argument("--namespace", type=_lazily("read_namespace"), metavar="NAMESPACE", help="(default: kubectl's)")
    parser.add_argument("--cpus", type=_lazily("read_cpus"), default="8", metavar="N", help="of each pod (default: 8)")
    parser.add_argument(
        "--memory", type=_lazily("read_size"), default="32Gi", metavar="SIZE", help="of each pod (default: 32Gi)"
    )
    name = _lazily("read_name")
    parser.add_argument("--environment-secret", type=name, metavar="NAME", help="variables of the pods, as s3:// needs them")
    parser.add_argument("--key-secret", type=name, metavar="NAME", help="that has the key of security.key_file")
    parser.add_argument(
        "--restarts", type=not_negative, default=3, metavar="N", help="after failures, from the last checkpoint (default: 3)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write files and a kustomization there instead of stdout")
    parser.add_argument("--dry-run", action="store_true", help="print the same with the secret masked, and write nothing")
    parser.add_argument("--shards", type=positive, metavar="N", help="of `kubernetes prepare`: how many pods share the work")
    parser.add_argument("--pods", type=positive, metavar="N", help="of `kubernetes search`: how many pods share the trials")


def _add_volume_arguments(parser: argparse.ArgumentParser) -> None:
    volumes = parser.add_argument_group("volumes", "a claim that is there, or a new one; by default a new one of 100Gi each")
    for role in ("data", "runs"):
        claim = volumes.add_mutually_exclusive_group()
        claim.add_argument(f"--{role}-claim", type=_lazily("read_name"), metavar="NAME", help=f"that has the {role}")
        claim.add_argument(f"--{role}-size", type=_lazily("read_size"), metavar="SIZE", help="of a new one")
    volumes.add_argument("--storage-class", type=_lazily("read_name"), metavar="NAME", help="of new claims")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.cli import not_negative, positive

    training = parser.add_argument_group("training", "not for `kubernetes prepare`; of a search GPUs, memory and variables")
    training.add_argument("--nodes", type=positive, metavar="N", help="how many pods train")
    training.add_argument("--gpus-per-node", type=not_negative, metavar="G", help="of each pod, a rank each (default: 0)")
    training.add_argument(
        "--ranks-per-node", type=positive, metavar="N", help="of each pod (default: a rank a GPU, or 1 without GPUs)"
    )
    training.add_argument("--kind", choices=("job", "jobset", "mpijob"), help="what runs the pods (default: job)")
    training.add_argument("--shared-memory", type=_lazily("read_size"), metavar="SIZE", help="of /dev/shm (default: 8Gi)")
    training.add_argument(
        "--grace-seconds",
        type=positive,
        metavar="S",
        help="to save after SIGTERM (default: from saves of the run that are here)",
    )
    training.add_argument(
        "--secret", type=_lazily("read_name"), metavar="NAME", help="one that is there, with the key token (default: a new one)"
    )
    training.add_argument("--no-tensorboard", action="store_true", help="leave it out")


def _add_placement_arguments(parser: argparse.ArgumentParser) -> None:
    from launch.cli import not_negative

    name = _lazily("read_name")
    placement = parser.add_argument_group("placement")
    placement.add_argument("--queue", type=name, metavar="NAME", help="the local queue of Kueue that starts it")
    placement.add_argument(
        "--node-selector",
        type=_lazily("read_node_selector"),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="again for more",
    )
    placement.add_argument(
        "--toleration",
        type=_lazily("read_toleration"),
        action="append",
        default=[],
        metavar="KEY[=VALUE][:EFFECT]",
        help="again for more",
    )
    placement.add_argument("--image-pull-secret", type=name, metavar="NAME", help="for a registry that asks for one")
    placement.add_argument("--priority-class", type=name, metavar="NAME", help="of the pods")
    placement.add_argument(
        "--ttl-seconds", type=not_negative, metavar="S", help="until a finished job is deleted (default: never)"
    )


def _lazily(name: str) -> Callable[[str], Any]:
    """A function of `launch.kubernetes.options` that reads the text of an option."""

    def read(text: str) -> Any:
        from launch.kubernetes import options

        return getattr(options, name)(text)

    return read


def _launch(arguments: argparse.Namespace) -> int:
    work = _take_work(arguments)
    path, overrides = Path(arguments.config), tuple(arguments.overrides)
    match work:
        case "prepare":
            manifests = _preparing(path, overrides, arguments)
        case "search":
            manifests = _searching(path, overrides, arguments)
        case _:
            manifests = _training_of(path, overrides, arguments)
    return _put_out(manifests, arguments)


def _take_work(arguments: argparse.Namespace) -> str:
    """What the first word asks for; takes it away. Raises UserError for options that belong to something else."""
    from trainer.errors import UserError

    work = arguments.config if arguments.config in (_PREPARE, _SEARCH) else _TRAIN
    verb = "launch kubernetes" if work == _TRAIN else f"launch kubernetes {work}"
    if work != _TRAIN:
        if not arguments.overrides:
            raise UserError(f"{verb}: got no CONFIG, expected a YAML file; a file of that name is ./{work}")
        arguments.config, *arguments.overrides = arguments.overrides
    for name, owners in _BELONGING.items():
        if work not in owners and getattr(arguments, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')}: does not belong to `drumline {verb}`; leave it out")
    needed = _NEEDED[work]
    if getattr(arguments, needed) is None:
        raise UserError(f"--{needed}: got nothing, expected how many pods `drumline {verb}` shall start")
    return work


def _preparing(path: Path, overrides: tuple[str, ...], arguments: argparse.Namespace) -> list[Manifest]:
    from launch.kubernetes.prepare import render_prepare
    from trainer.config_io import load_config

    config = load_config(path, overrides)
    return render_prepare(config, _text(path), _preparation(config, arguments), overrides)


def _searching(path: Path, overrides: tuple[str, ...], arguments: argparse.Namespace) -> list[Manifest]:
    import json

    from launch.kubernetes.search import render_search
    from trainer.config_io import load_config, load_search

    search = load_search(path, overrides)
    base = Path(search.config)
    config = load_config(base, [f"run.directory={json.dumps(search.directory)}"])
    return render_search(search, config, (_text(path), _text(base)), _search(search, config, arguments), overrides)


def _training_of(path: Path, overrides: tuple[str, ...], arguments: argparse.Namespace) -> list[Manifest]:
    from launch.kubernetes.render import render
    from launch.kubernetes.volumes import is_remote
    from trainer.config_io import load_config

    config = load_config(path, overrides)
    manifests = render(config, _text(path), _training(config, arguments), overrides)
    if is_remote(config.checkpoint.directory):
        logger.info("Workers may reach port 443 everywhere: checkpoint.directory is %s.", config.checkpoint.directory)
    return manifests


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _preparation(config: Config, arguments: argparse.Namespace) -> Preparation:
    from launch.kubernetes.options import Preparation
    from launch.kubernetes.pod import CONFIG_SUFFIX
    from launch.kubernetes.prepare import SUFFIX

    suffixes = (f"{SUFFIX}-{arguments.shards - 1}", f"{SUFFIX}{CONFIG_SUFFIX}")
    return Preparation(_options(config, config.run.name, "run.name", arguments, suffixes), arguments.shards)


def _search(search: SearchConfig, config: Config, arguments: argparse.Namespace) -> Searching:
    from launch.grace import grace_seconds
    from launch.kubernetes.options import Searching
    from launch.kubernetes.pod import CONFIG_SUFFIX
    from launch.kubernetes.search import SUFFIX

    suffixes = (f"{SUFFIX}-{arguments.pods - 1}", f"{SUFFIX}{CONFIG_SUFFIX}")
    job = _options(config, search.name, "name", arguments, suffixes)
    return Searching(
        job=job,
        pods=arguments.pods,
        runs=_claim(arguments, job.name, "runs"),
        grace_seconds=arguments.grace_seconds or grace_seconds(config),
        shared_memory=arguments.shared_memory or _SHARED_MEMORY,
    )


def _training(config: Config, arguments: argparse.Namespace) -> Training:

    from launch.grace import grace_seconds
    from launch.kubernetes import options, tensorboard
    from launch.kubernetes.jobset import WORKERS

    num_nodes = arguments.nodes
    kind: options.Kind = arguments.kind or "job"
    # Of the host names; TensorBoard's Service is named at most so.
    hosts = {"job": "", "jobset": f"-{WORKERS}-0", "mpijob": "-worker"}[kind]
    job = _options(
        config, config.run.name, "run.name", arguments, (f"{hosts}-{num_nodes - 1}", "-launcher", tensorboard.SUFFIX)
    )
    if arguments.secret is not None:
        secret = options.Secret(arguments.secret)
    else:
        secret = options.Secret(f"{job.name}-secret", _MASK if arguments.dry_run else _new_token())
    return options.Training(
        job=job,
        nodes=num_nodes,
        ranks=arguments.ranks_per_node or job.resources.gpus or 1,
        runs=_claim(arguments, job.name, "runs"),
        secret=secret,
        grace_seconds=arguments.grace_seconds or grace_seconds(config),
        kind=kind,
        shared_memory=arguments.shared_memory or _SHARED_MEMORY,
        tensorboard=not arguments.no_tensorboard,
    )


def _new_token() -> str:
    import base64
    import secrets

    return base64.b64encode(secrets.token_hex(_TOKEN_BYTES).encode()).decode()


def _options(config: Config, default_name: str, key: str, arguments: argparse.Namespace, suffixes: tuple[str, ...]) -> Options:
    from launch.kubernetes.options import Options, Resources, derive_name, require_room
    from launch.kubernetes.secrets import key_secret

    name = derive_name(default_name, key, arguments.name)
    require_room(name, suffixes)
    return Options(
        name=name,
        image=arguments.image,
        data=_claim(arguments, name, "data"),
        namespace=arguments.namespace,
        resources=Resources(arguments.cpus, arguments.memory, arguments.gpus_per_node or 0),
        placement=_placement(arguments),
        image_pull_secret=arguments.image_pull_secret,
        environment_secret=arguments.environment_secret,
        key=key_secret(config, arguments.key_secret, arguments.environment_secret),
        restarts=arguments.restarts,
    )


def _claim(arguments: argparse.Namespace, name: str, role: str) -> Claim:
    from launch.kubernetes.options import Claim

    existing, size = getattr(arguments, f"{role}_claim"), getattr(arguments, f"{role}_size")
    return Claim(existing) if existing is not None else Claim(f"{name}-{role}", size or "100Gi", arguments.storage_class)


def _placement(arguments: argparse.Namespace) -> Placement:
    from launch.kubernetes.options import Placement

    return Placement(
        queue=arguments.queue,
        node_selector=dict(arguments.node_selector),
        tolerations=tuple(arguments.toleration),
        priority_class=arguments.priority_class,
        ttl_seconds=arguments.ttl_seconds,
    )


def _put_out(manifests: list[Manifest], arguments: argparse.Namespace) -> int:
    from launch.kubernetes import output

    if arguments.output is None or arguments.dry_run:
        print(output.stream(manifests), end="")
        return 0
    for path in output.write_folder(arguments.output, manifests):
        logger.info("wrote %s", path)
    return 0
