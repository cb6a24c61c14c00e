"""Proves every network of the zoos: ``python -m experiments.coverage --out experiments/COVERAGE.md``.

Each network is measured in a process of its own with a time and a memory limit. Each measurement is appended
to a JSON-lines file beside the table, so that the same command resumes an interrupted one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from amc.errors import AmcError
from amc.files import append_line, atomic_write_text
from experiments.coverage.measure import NO_MEMORY, limit_memory, measure
from experiments.coverage.table import table
from experiments.coverage.zoo import ZOOS, Case, cases
from experiments.reproduce.origins import made_with
from experiments.run.provenance import commit, versions_of

PACKAGES = ("torch", "torchvision", "timm", "torch-pruning", "fvcore")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    options = argparse.ArgumentParser(prog="python -m experiments.coverage", description=__doc__)
    options.add_argument(
        "--out", type=Path, default=Path("COVERAGE.md"), help="the table; measurements beside it"
    )
    options.add_argument("--only", nargs="*", default=[], metavar="GLOB", help="names of networks")
    options.add_argument("--zoo", choices=(*ZOOS, "all"), default="all")
    options.add_argument("--timeout", type=float, default=300, metavar="S", help="seconds a network may take")
    options.add_argument(
        "--memory-mib", type=int, default=12000, metavar="M", help="address space of a process"
    )
    options.add_argument("--seed", type=int, default=0, help="of weights, images and widths")
    # The process of a single network is started with this option.
    options.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)
    return options


def main() -> None:
    """Measure the networks without a measurement and write the table of all."""
    options = parser().parse_args()
    if options.one is not None:
        _measure_here(options)
        return
    try:
        rows = _measured(cases(options.zoo, options.only), options)
        atomic_write_text(options.out, table(rows, _about(options, rows)))
    except AmcError as error:
        print(f"coverage: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("coverage: stopped; the same command resumes", file=sys.stderr)
        sys.exit(130)


def _measured(wanted: Sequence[Case], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a measurement of every network, and append those that are new to the log."""
    log = options.out.with_suffix(".jsonl")
    known = _read(log, options)
    with tqdm(wanted, desc="coverage", unit="network", disable=None) as bar:
        for case in bar:
            bar.set_postfix_str(case.name)
            if case.key not in known:
                about = {
                    "commit": commit(), "versions": versions_of(PACKAGES), "limits": _limits(options)
                }  # fmt: skip
                known[case.key] = {**_measure(case, options), **about}
                append_line(log, json.dumps(known[case.key]))
    return [known[case.key] for case in wanted]


def _measure_here(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    limit_memory(options.memory_mib)
    print(json.dumps(measure(Case(**json.loads(options.one)), options.seed)))


def _measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one network in a process of its own."""
    command = [sys.executable, "-m", "experiments.coverage", "--one", json.dumps(vars(case))]
    command += ["--seed", str(options.seed), "--memory-mib", str(options.memory_mib)]
    ended: dict[str, Any] = {"network": case.key, "size": case.size, "seed": options.seed, "outcome": "limit"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        reason = f"takes more than {options.timeout:g} s"
        return {**ended, "reason": reason, "seconds": options.timeout}
    if done.returncode:
        if "memory" in done.stderr:  # some libraries abort instead of raising
            return {**ended, "reason": NO_MEMORY, "seconds": None}
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return {**ended, "outcome": "crash", "reason": last[:300], "seconds": None}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _limits(options: argparse.Namespace) -> list[float]:
    return [options.timeout, options.memory_mib]


def _read(log: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Read earlier measurements with the same seed.

    Damaged lines, and networks that met a different limit, are left out and measured again.
    """
    known = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["seed"] == options.seed and (row["outcome"] != "limit" or row["limits"] == _limits(options)):
            known[row["network"]] = row
    return known


def _about(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> list[str]:
    command = f"python -m experiments.coverage --out {options.out}"
    command += f" --zoo {options.zoo}" if options.zoo != "all" else ""
    command += f" --only {' '.join(options.only)}" if options.only else ""
    command += f" --timeout {options.timeout:g} --memory-mib {options.memory_mib} --seed {options.seed}"
    return [
        f"`{command}`, {made_with(rows)}.",
        "",
        "Random weights, every group cut to a random width at once. *Exact*: zeroed, sliced, surgically",
        "pruned and reloaded networks compute the same (the figure is the largest relative difference of",
        "the zeroed and the cut network in float64), and the candidate that a search would judge, batch",
        "norm folded, is the network that is cut. *Prunable MACs*: the share in layers that read or make",
        "channels of a group; *smallest MACs*: what is left with a fifth of every group's channels. Groups",
        "that make the outputs stay whole everywhere and are not listed.",
    ]


if __name__ == "__main__":
    main()
