"""The command line of the benchmarks; each prints JSON."""

from __future__ import annotations

import argparse
import json
import sys

from amc.errors import AmcError
from experiments.benchmark import comparison as agents
from experiments.benchmark import (
    kills,
    proxies,
    quantizers,
    regret,
    search,
    space,
    transfer,
    workers,
)
from experiments.benchmark.faults import catalogue as faults
from experiments.benchmark.faults import soak
from experiments.benchmark.rivals import compare as rivals
from experiments.benchmark.training import finetune, processes

BENCHMARKS = (
    ("search", search, "cost of an episode"),
    ("workers", workers, "evaluations per minute with worker processes"),
    ("regret", regret, "agents against the true optimum of a small problem"),
    ("agents", agents, "agents on one real problem, over many seeds"),
    ("proxies", proxies, "scores on the search's images against the test images"),
    ("finetune", finetune, "what teachers, hints, averages and cheaper methods cost and give"),
    ("processes", processes, "images a second of several training processes"),
    ("transfer", transfer, "what searches of other networks are worth to one"),
    ("quantizers", quantizers, "weights of few bits: our rounding beside others'"),
    ("rivals", rivals, "torch-pruning and FastNAS, trained as ours"),
    ("space", space, "how much room the allowed widths leave a search"),
    ("faults", faults, "damaged files, strangers' files, signals, crash points: what is promised"),
    ("soak", soak, "memory, time and files of a long search"),
    ("kills", kills, "killed and resumed searches against an unbroken one"),
)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(
        prog="python -m experiments.benchmark", description="Benchmarks of the search itself, as JSON."
    )
    names = top.add_subparsers(dest="name", required=True)
    for name, module, text in BENCHMARKS:
        sub = names.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main() -> None:
    """Run one benchmark and print its results as JSON."""
    options = parser().parse_args()
    try:
        print(json.dumps(options.run(options), indent=2))
    except AmcError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
