"""``amc compare RUN RUN ... --out FILE.html``: finished runs side by side."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from amc.errors import FileError, SettingError
from amc.loading import STRATEGY
from amc.reading import read_json
from experiments.command.memory.remembered import run_dir
from experiments.report.answers import change, networks, quantized_speedups
from experiments.report.html import write_compared_html
from experiments.report.sections import taken
from experiments.report.text import MISSING, aligned, decimals, number
from experiments.run.episodes import read_episodes
from experiments.run.folder import MADE_OF, RunFolder
from experiments.run.reports import is_about

Json = Mapping[str, Any]

_NETWORK = {
    "top1": (float, None),
    **dict.fromkeys(("macs", "params", "divergence?", "lost?", "gained?"), float),
}
_TOLD = 6
"""Folders that are named in place of one that holds several runs."""
_SHAPE = {
    "dense": _NETWORK,
    **dict.fromkeys(("pruned?", "finetuned?", "quantized?"), _NETWORK),
    "macs_ratio": float,
    "params_ratio": float,
    "speedup": {...: float},
    "latency?": [{"backend": str, "others?": {...: {"speedup": float}}}],
    "agent?": (str, None),
    "search?": {"agent?": str, "episodes?": int},
    "stage_seconds?": {...: float},
    "resumed?": [str],
    f"{MADE_OF}?": {...: (str, None)},
    "model?": str,
    "data?": str,
    "seed?": int,
}


def compare_command(arguments: Sequence[str]) -> None:
    """Print the table of the named runs, and write the page if ``--out`` is given.

    Raises:
        SettingError: fewer than two runs are named, or an option is unknown.
        FileError: a run has no report, or has changed since.
    """
    options = _Parser(prog="amc compare", description=__doc__, add_help=False)
    options.add_argument("runs", nargs="*", type=Path)
    options.add_argument("--out", type=Path)
    found = options.parse_args(arguments)
    if len(found.runs) < 2:
        raise SettingError(f"amc compare got {len(found.runs)} run folders; expected at least two")
    reports = {name: _report(path) for name, path in zip(names_of(found.runs), found.runs, strict=True)}
    rows = table(reports)
    print(aligned(rows))
    for note in notes(reports):
        print(f"compare: {note}")
    if found.out is not None:
        _write(found.out, dict(zip(reports, found.runs, strict=True)), reports, rows)
        print(f"compare: {found.out}")


class _Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> Any:
        raise SettingError(f"amc compare: {message}; expected amc compare RUN RUN ... --out FILE.html")


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths that tell them apart.

    Raises:
        SettingError: two are the same folder.
    """
    paths = [run.resolve() for run in runs]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise SettingError(f"{runs[place]} is named twice; expected different runs")
    for parts in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _report(run: Path) -> Json:
    path = RunFolder(run).report.with_suffix(".json")
    if not path.exists():
        raise FileError(_without_report(run, path.name))
    again = f"run amc {run_dir(run)} stages=[report] again"
    found: Json = read_json(path, _SHAPE, again)
    if "pruned" not in found and "quantized" not in found:
        raise FileError(f"{path} is damaged: it has neither a pruned nor a quantized network; {again}")
    if not is_about(found, RunFolder(run)):
        raise FileError(
            f"{path} is about a network that {run} no longer has, or was judged anew since; {again}"
        )
    return found


def _without_report(run: Path, name: str) -> str:
    """Return what to do about a run without a report; one of several budgets has one for each of them."""
    if not run.is_dir():
        return f"{run}: there is no such folder; expected the folder of a finished run"
    folder = RunFolder(run)
    if folder.strategy.exists() and not folder.budgets.with_suffix(".json").exists():
        parts = []  # folders within are steps of a schedule
    else:
        parts = sorted({str(place.parent) for word in (name, STRATEGY) for place in run.glob(f"*/{word}")})
    if not parts:
        return f"{run} has no {name}: run amc {run_dir(run)} stages=[report]"
    more = f" and {len(parts) - _TOLD} more" if len(parts) > _TOLD else ""
    return f"{run} holds several runs: expected some of them, {shlex.join(parts[:_TOLD])}{more}"


def table(reports: Mapping[str, Json]) -> list[list[str]]:
    """Return a row for each run, the head first: accuracies in percent, costs as shares of the dense ones.

    Accuracies and speed-ups are those of the last network of a run.
    """
    faster = {name: _speedups(own) for name, own in reports.items()}
    runtimes = list(dict.fromkeys(name for own in faster.values() for name in own))
    head = ["run", "agent", "MACs", "params", "dense", "last top-1", "change [95%]", *runtimes, "time"]
    rows = [head]
    for name, own in reports.items():
        last = networks(own)[-1][1]
        speedups = [f"{faster[name][r]:.2f}x" if r in faster[name] else MISSING for r in runtimes]
        seconds = own.get("stage_seconds")
        rows.append(
            [
                name,
                str(own.get("agent") or own.get("search", {}).get("agent", MISSING)),
                f"{own['macs_ratio']:.1%}",
                f"{own['params_ratio']:.1%}",
                decimals(own["dense"]["top1"], missing=MISSING),
                decimals(last["top1"], missing=MISSING),
                change(last, own["dense"].get("images")),
                *speedups,
                taken(own, *seconds) if seconds else MISSING,
            ]
        )
    return rows


def _speedups(report: Json) -> dict[str, float]:
    """Return the speed-up of a run's last network on each runtime that has run it."""
    if "quantized" not in report:
        return dict(report["speedup"])
    return quantized_speedups(report.get("latency", ()))


def notes(reports: Mapping[str, Json]) -> Iterator[str]:
    """Yield what the runs differ in that makes their figures hard to compare."""
    for what in ("model", "data", "seed"):
        values = {name: own.get(what) for name, own in reports.items()}
        if len(set(map(str, values.values()))) > 1:
            yield f"{what} differs: {', '.join(f'{value} in {name}' for name, value in values.items())}"
    dense = {name: own["dense"]["top1"] for name, own in reports.items() if own["dense"]["top1"] is not None}
    if len(set(dense.values())) > 1:
        yield f"the dense network differs: {', '.join(f'{v:.2f}% in {name}' for name, v in dense.items())}"


def _write(out: Path, runs: Mapping[str, Path], reports: Mapping[str, Json], rows: list[list[str]]) -> None:
    costs = [
        (100 * own["macs_ratio"], last["top1"], f"{name}: {own['macs_ratio']:.1%}, {number(last['top1'])}%")
        for name, own in reports.items()
        if (last := networks(own)[-1][1])["top1"] is not None
    ]
    logs = {name: RunFolder(run).search for name, run in runs.items() if "search" in reports[name]}
    searches = {name: read_episodes(log) for name, log in logs.items() if log.exists()}
    links = [
        (name, os.path.relpath(page, out.parent or "."))
        for name, run in runs.items()
        if (page := RunFolder(run).report.with_suffix(".html")).exists()
    ]
    write_compared_html(
        out,
        f"{len(runs)} runs",
        rows,
        [*notes(reports)],
        links,
        costs,
        searches,
    )
