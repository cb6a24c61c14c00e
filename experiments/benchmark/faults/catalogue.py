"""The catalogue of faults: ``python -m experiments.benchmark faults --list``.

Each fault is tried on a small run of its own: files that are damaged, folders, checkpoints and pictures of
strangers, signals, odd paths, full disks, and a kill before each change of a file. Right is what
docs/reliability.md promises: the job ends well with the same bytes, or one line says what is wrong.
With ``--out`` the outcomes are kept: the same command at the same commit goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from tqdm import tqdm

from amc.errors import AmcError
from amc.files import append_line
from amc.reading import read_lines
from experiments.benchmark.arguments import positive
from experiments.benchmark.faults import corruption, crashes, environment, hostile
from experiments.benchmark.faults.bench import Absent, Bench, Fault
from experiments.report.text import aligned
from experiments.run.provenance import commit

KINDS = ("damaged files", "foreign folders", "checkpoints", "pictures", "environment", "crash points")

_LINE = {"commit": (str, None), "kind": str, "fault": str, "wrong": (str, None)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--list", action="store_true", help="print the catalogue and try nothing")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be repeated")
    parser.add_argument("--every", type=positive, default=1, help="try only every N-th fault of each kind")
    parser.add_argument("--points", type=positive, default=400, help="crash points of each job")
    parser.add_argument("--out", type=Path, help="file for the outcomes; those in it are not tried again")


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
    outcomes = _outcomes(chosen, options.out)
    tried = Counter(kind for kind, _ in outcomes)
    failed = Counter(kind for (kind, _), wrong in outcomes.items() if wrong is not None)
    head = ("tried", "right", "wrong")
    counts = {kind: (tried[kind], tried[kind] - failed[kind], failed[kind]) for kind in asked if tried[kind]}
    table = [[kind, *map(str, numbers)] for kind, numbers in counts.items()]
    print(aligned([["", *head], *table]), file=sys.stderr)
    kinds = {kind: dict(zip(head, numbers, strict=True)) for kind, numbers in counts.items()}
    wrong = [{"kind": k, "fault": f, "wrong": w} for (k, f), w in outcomes.items() if w is not None]
    return {"commit": commit(), "kinds": kinds, "wrong": wrong}


def _outcomes(chosen: Sequence[Fault], out: Path | None) -> dict[tuple[str, str], str | None]:
    """Try the faults that ``out`` does not know yet; return (kind, name) -> what was wrong, or None."""
    at = commit()
    known = {} if out is None else _known(out, at)
    waiting = [fault for fault in chosen if (fault.kind, fault.name) not in known]
    found = {(f.kind, f.name): known[f.kind, f.name] for f in chosen if (f.kind, f.name) in known}
    for fault, wrong in _tried(waiting):
        found[fault.kind, fault.name] = wrong
        if out is not None:
            line = {"commit": at, "kind": fault.kind, "fault": fault.name, "wrong": wrong}
            append_line(out, json.dumps(line))
    return found


def _tried(faults: Sequence[Fault]) -> Iterator[tuple[Fault, str | None]]:
    """Yield each fault and what was wrong, or None; without those that do not exist."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch) / "work")
        with mock.patch.dict(os.environ, {"XDG_CONFIG_HOME": scratch, "SECRET": "secret"}):
            if faults:
                bench.warm()
            for fault in tqdm(faults, desc="faults", disable=None):
                with suppress(Absent):
                    yield fault, fault.attempt(bench)


def _known(out: Path, at: str | None) -> dict[tuple[str, str], str | None]:
    """Return the outcomes in a file that were found at the commit ``at``.

    Raises:
        FileError: the file is damaged.
    """
    if not out.exists():
        return {}
    lines = read_lines(out, _LINE, "remove it to try all faults again")
    return {(line["kind"], line["fault"]): line["wrong"] for line in lines if line["commit"] == at}
