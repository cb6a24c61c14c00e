"""The stages of a run, in the order in which they make sense. Each is a module with ``run(run) -> facts``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError

if TYPE_CHECKING:
    from experiments.run import Run

STAGES = (
    "train",
    "profile",
    "search",
    "verify",
    "prune",
    "finetune",
    "compare",
    "correlate",
    "evaluate",
    "export",
    "benchmark",
    "serve",
    "sparsify",
    "inspect",
    "report",
)
WITHOUT_BUDGET = ("train", "profile", "sparsify", "inspect")
"""Stages that do not ask for the budget: run once for all budgets of a job."""
_COMPRESSING = {"search", "verify", "prune", "compare", "correlate"}


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown stage.

    Raises:
        AmcError: says which there are, and the nearest.
    """
    for name in names:
        if name not in STAGES:
            near = get_close_matches(name, STAGES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AmcError(f"unknown stage {name!r}; expected some of {', '.join(STAGES)}{hint}")


def with_latency(names: Sequence[str], kinds: Iterable[str], profiled: bool) -> list[str]:
    """Return the stages with what a search under a latency budget needs: a profile before, a check after.

    Args:
        kinds: of the budgets.
        profiled: whether the profile is there already.
    """
    found = list(names)
    if "search" not in found or "latency" not in kinds:
        return found
    if "profile" not in found and not profiled:
        found.insert(found.index("search"), "profile")
    if "verify" not in found:
        found.insert(found.index("search") + 1, "verify")
    return found


def run_stages(run: Run, names: Sequence[str]) -> None:
    """Run stages in the order given; ``run.check()`` has been called."""
    tracker = run.tracker
    summary: dict[str, Any] = {}
    try:
        for index, name in enumerate(names):
            if not _COMPRESSING & set(names[index:]):
                run.release()  # training needs the memory
            summary |= {f"{name}/{key}": value for key, value in run_stage(run, name).items()}
    finally:
        run.release()
        tracker.finish({key: value for key, value in summary.items() if isinstance(value, int | float | str)})


def run_stage(run: Run, name: str) -> dict[str, Any]:
    """Run one stage and record its facts with the wall-clock seconds it took."""
    start = time.perf_counter()
    facts = importlib.import_module(f"experiments.stages.{name}").run(run)
    facts = {**facts, "stage_seconds": round(time.perf_counter() - start, 2)}
    run.record(name, facts)
    return facts
