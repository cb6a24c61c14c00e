"""Tables and figures from run folders: ``python -m experiments.reproduce RUNS --out experiments/RESULTS.md``.

Every run folder below the given ones that has a strategy and test accuracies is one seed of a row. Runs of
the same network, data and budget share a table. Its rows are the agents, over all their seeds: the mean with
its 95% t interval, and the difference to one of the agents, paired by seed. An agent whose searches are of
several lengths has a row for each. The paper's figures stand beside.

Three folders are written beside the tables. ``figures/`` has a picture of every job; ``strategies/`` the best
strategy of every agent, chosen by the search's own return; ``records/`` the data that all this was drawn
from. The next call adds its runs to the records, and a call without RUNS draws them again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amc.errors import AmcError
from amc.files import atomic_write_text
from amc.strategy import Strategy
from experiments.reproduce.commands import experiment_of
from experiments.reproduce.figures import job_svg
from experiments.reproduce.origins import not_run
from experiments.reproduce.records import merged, read_records, write_records
from experiments.reproduce.rivals import ROWS, RivalRow, merged_rivals, read_rivals, write_rivals
from experiments.reproduce.runs import Jobs, Result, by_job, by_row, judged_only, read_results
from experiments.reproduce.sparse_runs import (
    SparseResult,
    merged_sparse,
    read_sparse,
    read_sparse_records,
    sparse_tables,
    write_sparse,
)
from experiments.reproduce.tables import paper_of, tables


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    options = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    options.add_argument("folders", nargs="*", type=Path, help="run folders, or folders of run folders")
    options.add_argument("--out", type=Path, help="markdown file; printed, without records, if not given")
    options.add_argument(
        "--against", default="ddpg", help="agent or row that others are compared with, or its preset"
    )
    return options


def main() -> None:
    """Write the tables, and beside them figures, strategies and records."""
    options = parser().parse_args()
    try:
        _reproduce(options.folders, options.out, options.against.replace(":", "."))
    except AmcError as error:
        _report(str(error))
        sys.exit(2)


def _reproduce(folders: Sequence[Path], out: Path | None, against: str) -> None:
    if out is not None and out.is_dir():
        raise AmcError(f"--out {out} is a folder; expected a file, such as {out / 'RESULTS.md'}")
    for folder in folders:
        if not folder.is_dir():
            raise AmcError(f"{folder}: there is no such folder; expected run folders, or folders of them")
    records = None if out is None else out.parent / "records"
    found = read_results(folders)
    known = judged_only(read_records(records), _report) if records else []
    results = merged(known, judged_only(found, _report), _report)
    sparse = merged_sparse(read_sparse_records(records) if records else [], read_sparse(folders))
    rivals = merged_rivals(read_rivals([records] if records else [], _report), read_rivals(folders, _report))
    if not (results or sparse or rivals):
        raise AmcError("no run below the given folders has been evaluated: run stages=[...,evaluate] first")
    for folder in folders:
        if not _has_runs(folder, found):
            _report(f"{folder} has no evaluated run: run stages=[...,evaluate] there, or name another folder")
    jobs = by_job(results)
    agents = sorted({result.agent for result in results})
    if agents and against not in {*agents, *(name for own in jobs.values() for name in by_row(own))}:
        _report(
            f"no run is of {against!r}, so no differences are shown: give --against {' or '.join(agents)}"
        )
    text = _page(jobs, sparse, rivals, against, figures=out is not None)
    if out is None or records is None:
        print(text)
        return
    write_figures(jobs, out.parent / "figures")
    write_strategies(jobs, out.parent / "strategies")
    write_records(results, records)
    write_rivals(rivals, records)
    write_sparse(sparse, records)
    atomic_write_text(out, text)


def _has_runs(folder: Path, results: Sequence[Result]) -> bool:
    """Whether anything below a folder is shown: ``results``, runs of stage ``sparsify``, other tools."""
    if any(Path(result.place).is_relative_to(folder) for result in results):
        return True
    return any(next(folder.rglob(name), None) for name in ("stages/sparsify.json", ROWS))


def _page(
    jobs: Jobs, sparse: Sequence[SparseResult], rivals: Sequence[RivalRow], against: str, figures: bool
) -> str:
    results = [result for own in jobs.values() for result in own]
    provenances = [*(own.provenance for own in results), *(own.provenance for own in sparse)]
    sections = (
        tables(jobs, against, figures, rivals),
        *([sparse_tables(sparse)] if sparse else []),
        not_run({experiment_of(facts) for facts in provenances}),
    )
    return "# Results\n\n" + "\n".join(sections)


def write_figures(jobs: Jobs, folder: Path) -> None:
    """Write one picture for every job."""
    for own in jobs.values():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / f"{own[0].slug}.svg", job_svg(own, paper_of(own)))


def write_strategies(jobs: Jobs, folder: Path) -> None:
    """Write the best strategy of every job and agent by the search's return: test images choose nothing.

    One that rows of other seeds carry out comes before a better one: their commands name its file.
    """
    for results in jobs.values():
        searched = [result for result in results if math.isfinite(result.value)]
        for agent in sorted({result.agent for result in searched}):
            own = [result for result in searched if result.agent == agent]
            carried = {result.widths_seed for result in own if result.seed != result.widths_seed}
            named = [result for result in own if result.widths_seed in carried]
            best = max(named or own, key=lambda result: result.value)
            folder.mkdir(parents=True, exist_ok=True)
            _published(best).save(folder / f"{best.slug}_{agent}.json")


def _published(result: Result) -> Strategy:
    """Return a result's strategy, which names the preset of its agent: only the command has told it."""
    found = result.strategy
    if result.agent == str(found.provenance["agent"]).replace(":", "."):
        return found
    return replace(found, provenance={**found.provenance, "preset": result.agent})


def _report(line: str) -> None:
    print(f"reproduce: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
