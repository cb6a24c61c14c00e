"""Runs stages one after the other, and records the facts that each found."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, FileError
from experiments.config.stages import MAKING, STAGES, WITH_DENSE
from experiments.run.reports import has_current_report
from experiments.run.trackers import kept_files, summary_of

if TYPE_CHECKING:
    from experiments.run.run import Run

_COMPRESSING = {"search", "choose", "verify", "prune", "schedule", "compare", "correlate"}

_EVALUATING = {"search", "proxies"}
"""Stages whose evaluations are remembered, by a fingerprint in their records."""


def run_stages(run: Run, names: Sequence[str], *, keep_evaluator: bool = False) -> None:
    """Run stages in the given order; ``check`` has been called.

    Args:
        run: the run.
        names: names of the stages.
        keep_evaluator: keep the evaluator in memory for the runs of other budgets.

    Raises:
        AmcError: a stage failed.
        Stopped: the user stopped a stage.
    """
    tracker = run.tracker
    summary: dict[str, Any] = {}
    failed, run.taken_up = True, run.folder.begun()
    try:
        for index, name in enumerate(names):
            if not keep_evaluator and not _COMPRESSING & set(names[index:]):
                run.problem.release()  # training needs the memory
            if name == "profile" and run.profiled:
                print(
                    "profile: an earlier command, which did not end, has measured latency_model.json, and "
                    "this one goes on with it; stages=[profile] measures again"
                )
                continue
            run.folder.note_begun(name)
            summary |= summary_of(name, _ended(run, name))
        failed = False
    finally:
        if not keep_evaluator:
            run.problem.release()
        files = kept_files(run.folder, report=has_current_report(run.folder))
        tracker.finish(summary, files, failed)


def _ended(run: Run, name: str) -> dict[str, Any]:
    """Run one stage; one that fails, and was not stopped, is not begun."""
    try:
        return run_stage(run, name)
    except AmcError:
        run.folder.forget_begun(name)
        raise


def run_stage(run: Run, name: str) -> dict[str, Any]:
    """Run one stage and record its facts with the wall-clock seconds it took.

    ``resumed`` stands beside the seconds where they are those of the last of several commands, which may have
    looked up what the others found.
    """
    start = time.perf_counter()
    if name in WITH_DENSE:
        run.problem.keep_dense()
    run.looked_up = name in _EVALUATING and _evaluated_before(run, name)
    facts = importlib.import_module(f"experiments.stages.{STAGES[name]}").run(run)
    facts = {**facts, "stage_seconds": round(time.perf_counter() - start, 2)}
    if name in run.taken_up or run.looked_up:
        facts["resumed"] = True
    run.record(name, facts)
    if name in MAKING:
        run.made_strategy()
    return facts


def _evaluated_before(run: Run, name: str) -> bool:
    """Whether an earlier command has run the stage, and its evaluations are known.

    A search that finds evaluations of stage ``proxies`` is none that did so before.
    """
    try:
        former = run.folder.recorded(name)
    except FileError:  # which is told when the record is read
        return False
    if former is None or not run.problem.folder.evaluations.exists():
        return False
    return bool(former.get("fingerprint") == run.problem.fingerprint)
