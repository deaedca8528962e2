"""How command lines are read: the nearest valid name for an unknown one, overrides anywhere, ranges checked."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

# What `add_subparsers` returns, which has no public name.
Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """argparse with one line a complaint. Each verb sets `parser` to its own parser, whose options are suggested."""

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        arguments, rest = self.parse_known_args(argv)
        parser: Parser = arguments.parser
        for argument in rest:
            if argument.startswith("-"):
                option = argument.partition("=")[0]
                known = re.findall(r"--[a-z-]+", parser.format_help())
                parser.error(f"unknown option {option}{_suggest(option, known)}")
            # argparse takes the first run of overrides alone: `train CONFIG --fresh train.steps=10` leaves one here.
            if "overrides" not in arguments:
                parser.error(f"got {argument!r}, expected no such argument")
            arguments.overrides = [*arguments.overrides, argument]
        return arguments

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)$", message):
            name, got, choices = match[1], match[2], re.findall(r"[\w-]+", match[3])
            message = f"{name}: got {got!r}, expected one of {', '.join(choices)}{_suggest(got, choices)}"
        print(f"drumline: {message} ({self.prog} --help tells more)", file=sys.stderr)
        sys.exit(2)


def add_config(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs=nargs, help="the YAML file of the run")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="wins over the file")


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_argument("--checkpoint", default="latest", metavar="STEP|best|latest", help="which one (default: latest)")


def not_negative(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 0")
    return int(text)


def all_or_not_negative(text: str) -> int:
    """A whole number from 0, or `all`, which is more than there can be."""
    return sys.maxsize if text == "all" else not_negative(text)


def not_empty(text: str) -> str:
    """A text with anything in it."""
    if not text:
        raise argparse.ArgumentTypeError("got nothing, expected a text")
    return text


def temperature(text: str) -> float:
    """A number from 0."""
    number = _number(text)
    if number is None or not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of at least 0")
    return number


def positive_number(text: str) -> float:
    """A number above 0."""
    number = _number(text)
    if number is None or not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return number


def probability(text: str) -> float:
    """A number above 0 and up to 1."""
    number = _number(text)
    if number is None or not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0 and up to 1")
    return number


def shard(text: str) -> tuple[int, int]:
    """`3/16`: the third of sixteen, counted from 1. `0/16` is the sixteenth, for those who count from 0."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 0 <= int(match[1]) <= int(match[2]) or int(match[2]) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N with I from 0 to N, as in 3/16")
    return int(match[1]) or int(match[2]), int(match[2])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _suggest(wrong: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
