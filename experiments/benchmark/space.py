"""How much room the allowed widths leave a search: ``python -m experiments.benchmark space OVERRIDE ...``.

The overrides describe the problem as they do for ``amc``. There is a row for every smallest share of a group,
every channel multiple, and with or without pruned residual streams: the smallest share of the MACs and of the
parameters that an allowed network keeps, the number of allowed networks, and at each budget the network of
the greedy allocation. Of that it has the groups at their smallest allowed width, the whole groups, and with
``--judge`` the score on the search images as in a search. Test images are not used.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import log10
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amc.budget.budget import Budget
from amc.budget.weighing import greedy_widths
from amc.cost.closed_form import macs_cost
from amc.errors import AmcError
from experiments.benchmark.arguments import positive
from experiments.benchmark.problem import config_of, open_job, open_trained, refuse_words
from experiments.run.room import room_left
from experiments.run.run import Run

COUPLED = {"true": (True,), "false": (False,), "both": (False, True)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument("--min-preserve-ratios", type=float, nargs="+", default=[0.2, 0.1, 0.05])
    parser.add_argument("--round-to", type=positive, nargs="+", default=[2, 1], help="channel multiples")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.3, 0.2], help="of the MACs")
    parser.add_argument(
        "--prune-coupled", choices=COUPLED, help="by default as the configuration has it", default=None
    )
    parser.add_argument("--reach", action="store_true", help="only the smallest networks: needs no weights")
    parser.add_argument("--judge", action="store_true", help="score the greedy networks")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the spaces; see the module's docstring.

    Raises:
        AmcError: the overrides are wrong, or about what the options say.
    """
    if options.reach and options.judge:
        raise AmcError("got --reach and --judge; expected one of them: --reach evaluates no network")
    refuse_words(
        options.overrides,
        ["budget"],
        "give --ratios of the MACs, --round-to and --min-preserve-ratios",
    )
    if options.prune_coupled is not None:
        refuse_words(options.overrides, ["compressor.prune_coupled"], "--prune-coupled is given")
    config = config_of(*options.overrides)
    coupled = COUPLED.get(options.prune_coupled, (config.compressor.prune_coupled,))
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for streams in coupled for row in _rows(options, streams, Path(folder))]
    return {"overrides": options.overrides, "spaces": rows}


def _rows(options: argparse.Namespace, streams: bool, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the facts of every space; the spaces share the network and its evaluations."""
    opened = open_job if options.reach else open_trained
    job = opened(folder, *options.overrides, f"compressor.prune_coupled={streams}".lower())
    spaces = list(product(options.min_preserve_ratios, options.round_to))
    for share, multiple in tqdm(spaces, desc=f"prune_coupled={streams}", disable=None):
        budget = replace(job.config.budget, min_preserve_ratio=share, round_to=multiple)
        part = Run(replace(job.config, budget=budget), job.folder, job.problem)
        about = {"prune_coupled": streams, "min_preserve_ratio": share, "round_to": multiple}
        yield {**about, **_room(part, options)}
    job.problem.release()


def _room(job: Run, options: argparse.Namespace) -> dict[str, Any]:
    space, macs, params = job.space, macs_cost(job.problem.graph), job.problem.params
    facts: dict[str, Any] = {
        "minimum_macs_ratio": macs(space.minimum) / macs(space.dense),
        "minimum_params_ratio": params(space.minimum) / params(space.dense),
        "groups": len(space.names),
        "networks_log10": sum(log10(len(choices)) for choices in space.choices),
    }
    if not options.reach:
        budgets = {ratio: job.budget_of({"macs": ratio}) for ratio in options.ratios}
        facts["greedy"] = {str(ratio): _greedy(job, own, options.judge) for ratio, own in budgets.items()}
    return facts


def _greedy(job: Run, budget: Budget, judge: bool) -> dict[str, Any] | None:
    """Return the facts of the greedy network that fills the budget; None if no allowed network meets it."""
    space = job.space
    if not budget.fits(space.minimum):
        return None
    found = greedy_widths(space, budget, job.problem.curves()())
    widths = budget.scale(space, [width / dense for width, dense in zip(found, space.dense, strict=True)])
    room = room_left(space, widths)
    facts: dict[str, Any] = {name: room[name] for name in ("groups_on_floor", "groups_whole")}
    facts |= {"macs_ratio": budget.leading.share(widths), "widths": list(widths)}
    if judge:
        evaluation = job.problem.evaluator().evaluate(widths)
        facts |= {"score": job.reward(evaluation), "top1": evaluation.top1}
    return facts
