"""`drumline search`."""

from __future__ import annotations

import argparse
import importlib.util

from launch.cli import positive
from trainer.arguments import Parser, Verbs, add_config, positive_number
from trainer.errors import BackendError, UserError

_PACKAGES = ("optuna", "plotly")
_DESCRIPTION = """Tries settings of a training by the YAML file of a search, and goes on where it stopped.
With --learning-rate-range CONFIG is that of a run, of which it finds a learning rate."""


def add_search(verbs: Verbs, common: Parser) -> None:
    parser = verbs.add_parser(
        "search",
        help="choose hyper-parameters: grid, random or Bayesian, with cross-validation",
        description=_DESCRIPTION,
        parents=[common],
    )
    add_config(parser)
    parser.add_argument("--learning-rate-range", action="store_true", help="find a learning rate for the run of CONFIG")
    tried = parser.add_argument_group("learning rates", "with --learning-rate-range")
    tried.add_argument("--lowest", type=positive_number, metavar="RATE", help="of the first step (default: 1e-7)")
    tried.add_argument("--highest", type=positive_number, metavar="RATE", help="of the last step (default: 1)")
    tried.add_argument("--steps", type=positive, metavar="N", help="from one to the other (default: 100)")
    parser.set_defaults(handler=_search, parser=parser)


def _search(arguments: argparse.Namespace) -> int:
    given = {"lowest": arguments.lowest, "highest": arguments.highest, "num_steps": arguments.steps}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not arguments.learning_rate_range:
        name = {"num_steps": "steps"}.get(min(given), min(given))
        raise UserError(f"--{name}: got it without --learning-rate-range, to which it belongs")
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise BackendError(f"search: the package {' and '.join(missing)} is missing; run: pip install 'drumline[search]'")
    from launch.requests import Requests

    with Requests() as requests:
        if arguments.learning_rate_range:
            from trainer.search.rate_range import RateRange, find_rate

            tried = RateRange(**given)
            if tried.lowest >= tried.highest:
                raise UserError(f"--lowest: got {tried.lowest:g}, expected less than --highest, which is {tried.highest:g}")
            print(find_rate(arguments.config, arguments.overrides, tried, requests))
            return 0
        from launch.surroundings import read_variable
        from trainer.config_io import load_search
        from trainer.search.search import search

        settings = load_search(arguments.config, arguments.overrides)
        print(search(settings, requests, read_variable("storage_environment", settings.storage_environment)))
    return 0
