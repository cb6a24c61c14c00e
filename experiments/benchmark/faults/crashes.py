"""Jobs broken off before each change of a file; then the same command gives the same bytes.

A job is run twice without a break. In the first run its folder is copied before each change of a file in it:
that is what a SIGKILL at this place leaves behind. Whatever is the same after both runs must be the same
after the command was given again on such a copy, and there must be no other file.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from amc.errors import AmcError
from experiments.benchmark.faults.bench import JOB, Absent, Bench, Fault, command
from experiments.benchmark.faults.facts import facts, names


class Job(NamedTuple):
    """A job, and the file that is there before the changes that are tried."""

    arguments: tuple[str, ...]
    after: str | None = "stages/train.json"


SEARCHES = ("ddpg", "tpe", "netadapt", "evolution", "thompson")
ALLOCATIONS = ("uniform", "deep", "shallow", "global_l1", "global_taylor", "greedy")
JOBS = {
    "main job": Job(("stages=[train,search,prune,finetune,export,evaluate,report]",), None),
    "compare": Job(("stages=[train,search,compare]",)),
    "correlate": Job(("stages=[train,search,correlate]",)),
    "choose": Job(("stages=[train,search,choose,prune]",), "stages/search.json"),
    "four epochs": Job(("stages=[train,search,prune,finetune]", "finetune.epochs=4"), "stages/prune.json"),
    "sparsify": Job(("stages=[train,sparsify]",)),
    "two budgets": Job(("stages=[train,search,prune]", "budget.macs_ratios=[0.5,0.7]")),
    "quantize": Job(("stages=[train,inspect,search,prune,quantize]",), "stages/prune.json"),
    "proxies": Job(("stages=[train,proxies,search]", "data.unseen=16", "proxies.networks=5")),
    "schedule": Job(("stages=[train,schedule]", "schedule.ratios=[0.8,0.65]")),
    "timings": Job(("stages=[train,profile,search,prune,benchmark,serve]",)),
    **{
        agent: Job(("stages=[train,search,prune]", f"agent={agent}", *own))
        for agent, own in (
            *((agent, ("agent.episodes=8",)) for agent in SEARCHES),
            *((agent, ()) for agent in ALLOCATIONS),
        )
    },
}
_CHANGES = {"os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (0, 1)}
"""Event of Python's audit hooks -> its arguments that are paths."""


def faults(points: int) -> Iterator[Fault]:
    """Yield the faults: for each job the first ``points`` changes; those that a job lacks are not counted."""
    for name in JOBS:
        for number in range(points):
            yield Fault("crash points", f"{name}: change {number}", partial(_attempt, name, number))


def copying(folder: Path, copies: Path) -> Callable[[], None]:
    """Return what makes a process copy ``folder`` to ``copies`` before each change of a file in it.

    The copies are numbered. There is one for each content: a change may be none, or may fail.
    """
    last: dict[str, bytes] | None = None
    count = 0

    def changes(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal last, count
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            paths = [path] if writes else []
        else:
            paths = [arguments[place] for place in _CHANGES.get(event, ())]
        if any(_is_inside(path, folder) for path in paths) and (now := _content(folder)) != last:
            (copies / f"{count:04}").mkdir(parents=True)
            if folder.exists():
                shutil.copytree(folder, copies / f"{count:04}" / folder.name)
            last, count = now, count + 1

    return lambda: sys.addaudithook(changes)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in (folder, *folder.rglob("*"))
        if path.exists()
    }


def _is_inside(path: object, folder: Path) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    full = os.path.abspath(os.fsdecode(path))
    return full == str(folder) or full.startswith(f"{folder}{os.sep}")


class Unbroken(NamedTuple):
    """A job that was not broken off: its copies before each change, its files, what is always the same."""

    copies: tuple[Path, ...]
    files: frozenset[str]
    same: dict[str, Any]


def _unbroken(name: str, bench: Bench) -> Unbroken:
    """Run a job twice, unless this was done before.

    Raises:
        AmcError: it fails.
    """
    if name not in bench.kept:
        copies = bench.scratch / "copies" / name
        first, second = (_run(name, bench, before) for before in (copies, None))
        same = {place: value for place, value in first.items() if second.get(place) == value}
        states = sorted(copies.iterdir())
        after = JOBS[name].after
        chosen = [each for each in states if after is None or (each / "run" / after).exists()]
        bench.kept[name] = Unbroken(tuple(chosen), names(bench.scratch / "crashed/run"), same)
    found: Unbroken = bench.kept[name]
    return found


def _run(name: str, bench: Bench, copies: Path | None) -> dict[str, Any]:
    """Run a job in an empty folder; return the facts of it."""
    cwd = bench.empty("crashed")
    before = (lambda: None) if copies is None else copying(cwd / "run", copies)
    ended = command(_arguments(name), cwd, before=before, learns=True)
    if ended.status != 0:
        raise AmcError(f"the job {name!r} failed: {ended.err.strip()[-400:]}")
    return facts(cwd / "run")


def _arguments(name: str) -> list[str]:
    return [*JOB, *JOBS[name].arguments, "run_dir=run"]


def _attempt(name: str, number: int, bench: Bench) -> str | None:
    unbroken = _unbroken(name, bench)
    if number >= len(unbroken.copies):
        raise Absent
    cwd = bench.empty("crashed")
    shutil.copytree(unbroken.copies[number], cwd, dirs_exist_ok=True)
    again = command(_arguments(name), cwd)
    if again.status != 0 or again.fault:
        return f"the command again: {again.fault or again.err.strip()[-200:]}"
    files, found = names(cwd / "run"), facts(cwd / "run")
    if stray := sorted(files - unbroken.files):
        return f"stays behind: {', '.join(stray[:5])}"
    if missing := sorted(unbroken.files - files):
        return f"missing: {', '.join(missing[:5])}"
    differs = [place for place, value in unbroken.same.items() if found.get(place) != value]
    return f"differs: {', '.join(differs[:5])}" if differs else None
