"""The catalogue of faults: ``python -m experiments.benchmark faults --list``.

Each fault is tried on a small run of its own: files that are damaged, folders, checkpoints and pictures of
strangers, signals, odd paths, full disks, and a kill before each change of a file. Right is what
docs/reliability.md promises: the job ends well with the same bytes, or one line says what is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from tqdm import tqdm

from amc.errors import AmcError
from experiments.benchmark.faults import corruption, crashes, environment, hostile
from experiments.benchmark.faults.bench import Bench, Fault
from experiments.report.text import aligned
from experiments.run.provenance import commit

KINDS = ("damaged files", "foreign folders", "checkpoints", "pictures", "environment", "crash points")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--list", action="store_true", help="print the catalogue and try nothing")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be repeated")
    parser.add_argument("--every", type=int, default=1, help="try only every N-th fault of each kind")
    parser.add_argument("--points", type=int, default=100, help="crash points of each job")


def catalogue(points: int) -> list[Fault]:
    """Return all faults.

    Args:
        points: crash points of each job; a job with fewer changes of files passes at the rest.
    """
    own = (corruption.faults(), hostile.faults(), environment.faults(), crashes.faults(points))
    return [fault for part in own for fault in part]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Try the faults; print the table on standard error.

    Raises:
        AmcError: the job fails without any fault, or ``every`` is below 1.
    """
    if options.every < 1:
        raise AmcError(f"--every is {options.every}; expected at least 1")
    asked = options.kind or KINDS
    found = catalogue(options.points)
    chosen = [f for kind in asked for f in [g for g in found if g.kind == kind][:: options.every]]
    if options.list:
        return {"faults": len(chosen), "catalogue": [f"{fault.kind}: {fault.name}" for fault in chosen]}
    wrong: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch) / "work")
        with mock.patch.dict(os.environ, {"XDG_CONFIG_HOME": scratch, "SECRET": "secret"}):
            for fault in tqdm(chosen, desc="faults", disable=None):
                if (reason := fault.attempt(bench)) is not None:
                    wrong.append({"kind": fault.kind, "fault": fault.name, "wrong": reason})
    tried, failed = Counter(f.kind for f in chosen), Counter(each["kind"] for each in wrong)
    counts = {kind: (tried[kind], tried[kind] - failed[kind], failed[kind]) for kind in asked if tried[kind]}
    head = ("tried", "right", "wrong")
    table = [[kind, *map(str, numbers)] for kind, numbers in counts.items()]
    print(aligned([["", *head], *table]), file=sys.stderr)
    kinds = {kind: dict(zip(head, numbers, strict=True)) for kind, numbers in counts.items()}
    return {"commit": commit(), "kinds": kinds, "wrong": wrong}
