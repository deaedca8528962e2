"""What is asked of the renderer, as values; and how each is read from the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from trainer.errors import UserError

Kind = Literal["job", "jobset", "mpijob"]
Effect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]

# Of a host name, of a Service and of a label's value (kubernetes.io/docs/concepts/overview/working-with-objects/names).
LONGEST_NAME = 63

_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000**power) for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024**power) for power, unit in enumerate("KMGTPE", start=1)},
}
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True)
class Claim:
    """A PersistentVolumeClaim. `size` is that of a new one, and None where it is there already."""

    name: str
    size: str | None = None
    storage_class: str | None = None


@dataclass(frozen=True)
class Resources:
    """What a pod asks for, and never gets more of."""

    cpus: str = "8"
    memory: str = "32Gi"
    gpus: int = 0


@dataclass(frozen=True)
class Toleration:
    key: str
    value: str | None = None
    effect: Effect | None = None


@dataclass(frozen=True)
class Placement:
    """Where and when pods run: what schedulers and queues of the cluster go by."""

    queue: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class: str | None = None
    ttl_seconds: int | None = None


@dataclass(frozen=True)
class KeySecret:
    """The Secret that has a key to encrypt with, of which `file` is mounted in `folder`."""

    secret: str
    folder: str
    file: str


@dataclass(frozen=True)
class Options:
    """What every job has."""

    name: str
    image: str
    data: Claim
    namespace: str | None = None
    resources: Resources = Resources()
    placement: Placement = Placement()
    image_pull_secret: str | None = None
    environment_secret: str | None = None
    key: KeySecret | None = None
    restarts: int = 3


@dataclass(frozen=True)
class Secret:
    """By what the workers prove to each other that they belong together. `token` is in base64, as a Secret has it; without one
    it is in the cluster already."""

    name: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Training:
    """A gang of `nodes` workers, each a pod with so many ranks."""

    job: Options
    nodes: int
    ranks: int
    runs: Claim
    secret: Secret
    grace_seconds: int
    kind: Kind = "job"
    shared_memory: str = "8Gi"
    tensorboard: bool = True


@dataclass(frozen=True)
class Preparation:
    """`drumline prepare` in so many parts."""

    job: Options
    shards: int


@dataclass(frozen=True)
class Searching:
    """`drumline search` in so many pods, which share the trials."""

    job: Options
    pods: int
    runs: Claim
    grace_seconds: int
    shared_memory: str = "8Gi"


def derive_name(default: str, key: str, given: str | None) -> str:
    """The name of all objects, by default from what the configuration has for `key`. Raises UserError where Kubernetes would
    not take it."""
    name = given if given is not None else re.sub(r"[^a-z0-9-]+", "-", default.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        source = "--name" if given is not None else key
        raise UserError(
            f"{source}: got {given if given is not None else default}, expected a name for Kubernetes: lower-case letters, "
            "digits and -, a letter first and no - last; give one with --name"
        )
    return name


def require_room(name: str, suffixes: tuple[str, ...]) -> None:
    """Raises UserError where a host name or an object's name would be too long."""
    longest = max(suffixes, key=len)
    if len(name) + len(longest) > LONGEST_NAME:
        raise UserError(
            f"the name {name}: got {len(name)} characters, and {name}{longest} has {len(name) + len(longest)} of at most "
            f"{LONGEST_NAME}; give a shorter one with --name"
        )


def amount(quantity: str) -> Decimal:
    """How much a Kubernetes quantity is: `500m` is 0.5, `1Ki` is 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", quantity)
    assert match is not None
    return Decimal(match[1]) * _UNITS[match[2]]


# What argparse calls for the text of an option.


def read_name(text: str) -> str:
    """The name of an object that is in the cluster: a DNS subdomain."""
    if len(text) > 253 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name of Kubernetes: lower-case letters, digits, - and .")
    return text


def read_namespace(text: str) -> str:
    if len(text) > LONGEST_NAME or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name of Kubernetes: lower-case letters, digits and -")
    return text


def read_cpus(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d{1,3})?|\d+m", text) or not amount(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of cores, as in 8, 0.5 or 500m")
    return text


def read_size(text: str) -> str:
    match = re.fullmatch(r"\d+(?:\.\d+)?([kMGTPE]|[KMGTPE]i)", text)
    if match is None or not amount(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a size, as in 100Gi or 500M")
    return text


def read_node_selector(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a node's label, KEY=VALUE")
    return key, value


def read_toleration(text: str) -> Toleration:
    rest, colon, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value) or (colon and effect not in _EFFECTS):
        expected = f"KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT, with one of {', '.join(_EFFECTS)}"
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
    return Toleration(key, value if equals else None, effect if colon else None)  # type: ignore[arg-type]


def read_image(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.:/@-]*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a container image, as in registry.example.com/drumline:1")
    return text
