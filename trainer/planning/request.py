"""What is asked for of the cluster that is planned for, and the units that its figures are written in."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"": 1.0, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "bandwidth": {f"{p}b/s": scale / 8 for p, scale in _PREFIXES.items()}
    | {f"{p}B/s": scale for p, scale in (_PREFIXES | _BINARY).items()},
    "duration": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "rate": {f"{p}FLOP/s": scale for p, scale in _PREFIXES.items()},
    "amount": {f"{p}B": scale for p, scale in (_PREFIXES | _BINARY).items()},
}
_EXAMPLES = {
    "bandwidth": "400Gb/s (bits) or 50GB/s (bytes)",
    "duration": "14us or 0.1ms",
    "rate": "50GFLOP/s or 989TFLOP/s",
    "amount": "80GB or 24GiB",
}


@dataclass(frozen=True)
class Request:
    """What was asked for, in SI units; None where the option was not given."""

    accelerator: str
    num_nodes: int
    devices_per_node: int
    bandwidth: float | None = None
    latency: float | None = None
    link_bandwidth: float | None = None
    link_latency: float | None = None
    utilization: float | None = None
    peak: float | None = None
    memory: float | None = None
    memory_bandwidth: float | None = None
    memory_share: float | None = None
    price: float | None = None


def bandwidth(text: str) -> float:
    """`400Gb/s` or `50GB/s`, in bytes per second."""
    return _quantity(text, "bandwidth")


def duration(text: str) -> float:
    """`14us`, in seconds."""
    return _quantity(text, "duration")


def rate(text: str) -> float:
    """`50GFLOP/s`, in FLOP/s."""
    return _quantity(text, "rate")


def amount_of_memory(text: str) -> float:
    """`80GB` or `24GiB`, in bytes."""
    return _quantity(text, "amount")


def price(text: str) -> float:
    """A number from 0, without a currency."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number such as 2.50")
    return float(text)


def _quantity(text: str, kind: str) -> float:
    """A number above 0 with its unit, of which case matters: b is a bit, B a byte."""
    units = _UNITS[kind]
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\S+)", text)
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0 and its unit, such as {_EXAMPLES[kind]}")
    return float(match[1]) * units[match[2]]
