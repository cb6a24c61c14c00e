"""A kill before each change of a file in a run folder; then the same command again gives the same bytes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from amc.errors import AmcError
from amc.files import is_temporary
from experiments.benchmark.faults.bench import JOB, Bench, Fault, command, results

JOBS = {
    "main job": ("stages=[train,search,prune,finetune,export,evaluate,report]",),
    "compare": ("stages=[train,search,compare]",),
    "correlate": ("stages=[train,search,correlate]",),
    "four epochs": ("stages=[train,search,prune,finetune]", "finetune.epochs=4"),
    "sparsify": ("stages=[train,sparsify]",),
    "two budgets": ("stages=[train,search,prune]", "budget.macs_ratios=[0.5,0.7]"),
    "ddpg": ("stages=[train,search,prune]", "agent=ddpg", "agent.warmup_episodes=2", "agent.guide=none"),
}
_CHANGES = {"os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (0, 1)}
"""Event of Python's audit hooks -> its arguments that are paths."""


def faults(points: int) -> Iterator[Fault]:
    """Yield the faults: for each job the first ``points`` changes, and some that lie far behind."""
    for name, job in JOBS.items():
        for number in range(points):
            yield Fault("crash points", f"{name}: change {number}", partial(_attempt, name, job, number))


def killing(folder: Path, number: int) -> Callable[[], None]:
    """Return what makes a process kill itself before the ``number``-th change of a file in ``folder``."""
    count = 0

    def changes(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            paths = [path] if writes else []
        else:
            paths = [arguments[place] for place in _CHANGES.get(event, ())]
        if any(_is_inside(path, folder) for path in paths):
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    return lambda: sys.addaudithook(changes)


def _is_inside(path: object, folder: Path) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    full = os.path.abspath(os.fsdecode(path))
    return full == str(folder) or full.startswith(f"{folder}{os.sep}")


def _attempt(name: str, job: Sequence[str], number: int, bench: Bench) -> str | None:
    arguments = [*JOB, *job, "run_dir=run"]
    whole = bench.scratch / f"whole {name}"
    if not whole.exists():
        ended = command(arguments, bench.empty(whole.name))
        if ended.status != 0:
            raise AmcError(f"the job failed: {ended.err.strip()[-400:]}")
    cwd = bench.empty("crashed")
    first = command(arguments, cwd, before=killing(cwd / "run", number))
    if first.status == 0:  # it has fewer changes
        return None
    if first.status != -signal.SIGKILL:
        return first.fault or f"status {first.status}"
    again = command(arguments, cwd)
    if again.status != 0:
        return f"the second command: {again.err.strip()[-200:]}"
    left = [path.name for path in (cwd / "run").rglob("*") if is_temporary(path.name)]
    if left:
        return f"{len(left)} temporary files stay behind, such as {left[0]}"
    return _difference(whole / "run", cwd / "run")


def _difference(one: Path, other: Path) -> str | None:
    folders = [one, *(path for path in one.iterdir() if (path / "strategy.json").exists())]
    for folder in folders:
        expected, found = results(folder), results(other / folder.relative_to(one))
        differs = sorted(key for key in expected if found.get(key) != expected[key])
        if differs:
            return f"{', '.join(differs)} differ in {folder.name}"
    names = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    missing = sorted(name for name in names if not (other / name).exists())
    return f"{missing[0]} is missing" if missing else None
