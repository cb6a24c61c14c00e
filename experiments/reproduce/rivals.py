"""Networks that other tools have pruned: rows of ``experiments.benchmark rivals``, and where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import FileError
from amc.files import atomic_write_text
from amc.reading import read_lines
from experiments.reproduce.commands import command_of, recipe_of, shown_command, words_of
from experiments.reproduce.runs import JOB, SAME_DENSE, Jobs, Result

ROWS = "rows.jsonl"
"""The file of ``experiments.benchmark rivals``."""
_SHAPE = {
    "rival": str,
    "seed": int,
    "overrides": [str],
    "not_run?": str,
    "job?": [str],
    "macs_ratio?": float,
    "dense_top1?": (float, None),
    "pruned_top1?": float,
    "finetuned_top1?": float,
    "corrupted?": {"pruned": {}, "finetuned": {}},
}
Corrupted = tuple[Mapping[str, float], Mapping[str, float]]
"""Top-1 in percent on each kind of corrupted test images, before and after fine-tuning."""


@dataclass(frozen=True)
class Tuned:
    """One fine-tuned network; accuracies are top-1 in percent on the test images.

    Attributes:
        recipe: the words of the command that decide how it was trained.
        name: agent or tool that chose its widths.
        seed: of the run.
        widths_seed: of the search that found its widths, which may be another run's.
        macs_ratio: its MACs, relative to the dense network's.
        before, after: accuracy before and after fine-tuning.
        corrupted: the same two by kind of corruption; None where they were not measured.
    """

    recipe: str
    name: str
    seed: int
    widths_seed: int
    macs_ratio: float
    before: float
    after: float
    corrupted: Corrupted | None


@dataclass(frozen=True)
class RivalRow:
    """A network that another tool has pruned.

    Attributes:
        job: network, data and budget, as the first three parts of ``Result.job``.
        network: what became of it.
        line: the row as the benchmark has written it.
    """

    job: tuple[str, ...]
    network: Tuned
    line: Mapping[str, Any]


def read_rivals(folders: Iterable[Path], warn: Callable[[str], None]) -> list[RivalRow]:
    """Read the rows of other tools below ``folders``; ``warn`` gets a line for each that did not run.

    Raises:
        FileError: a row is damaged.
    """
    paths = sorted({path for folder in folders for path in folder.rglob(ROWS)})
    found = []
    for path in paths:
        lines = read_lines(path, _SHAPE, "remove it to try all tools again")
        for number, line in enumerate(lines, start=1):
            if "finetuned_top1" not in line:
                continue
            try:
                found.append(_rival(line))
            except (KeyError, TypeError, ValueError) as error:
                raise FileError(f"{path} line {number} is no row of another tool ({error!r})") from error
        for line in _not_run(lines):
            reason = line.get("not_run", "it has no result")
            warn(f"{path}: {line['rival']}, seed {line['seed']}, did not run and has no row: {reason}")
    return found


def _not_run(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the last line of each tool, seed and job, of those of which no line has a result."""
    cells = {(line["rival"], line["seed"], *line["overrides"]): line for line in lines}
    for line in lines:
        if "finetuned_top1" in line:
            cells.pop((line["rival"], line["seed"], *line["overrides"]), None)
    return list(cells.values())


def _rival(line: Mapping[str, Any]) -> RivalRow:
    network = Tuned(
        recipe_of(command_of(line["overrides"])),
        line["rival"],
        line["seed"],
        line["seed"],
        line["macs_ratio"],
        line["pruned_top1"],
        line["finetuned_top1"],
        corrupted_of(line.get("corrupted") or {}),
    )
    return RivalRow(tuple(line["job"]), network, line)


def corrupted_of(found: Mapping[str, Mapping[str, float] | None]) -> Corrupted | None:
    """Return the accuracies on corrupted images of the pruned and the fine-tuned network, if both have any.

    Raises:
        ValueError: one is no number.
    """
    before, after = found.get("pruned"), found.get("finetuned")
    numbers = [{kind: float(top1) for kind, top1 in (own or {}).items()} for own in (before, after)]
    return (numbers[0], numbers[1]) if all(numbers) else None


def merged_rivals(known: Iterable[RivalRow], new: Iterable[RivalRow]) -> list[RivalRow]:
    """Return rows in a fixed order; a new one replaces that of the same job, tool, seed and recipe."""
    found = {_key(row): row for row in [*known, *new]}
    return [found[key] for key in sorted(found)]


def write_rivals(rows: Sequence[RivalRow], folder: Path) -> None:
    """Write rows so that ``read_rivals`` finds them below ``folder``, without paths of this machine."""
    if not rows:
        return
    lines = [
        {**row.line, "overrides": words_of(shown_command(command_of(row.line["overrides"])))} for row in rows
    ]
    (folder / "rivals").mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "rivals" / ROWS, "".join(json.dumps(line) + "\n" for line in lines))


def _key(row: RivalRow) -> tuple[tuple[str, ...], str, int, str]:
    return row.job, row.network.name, row.network.seed, row.network.recipe


def place_of(row: RivalRow, jobs: Jobs) -> tuple[str, ...] | None:
    """Return the job whose table a row belongs to; None if no job is of its network, data and budget.

    It is the first with a run of the row's recipe and dense network. Without one it is the first of all, one
    with the same dense network if there is one.
    """
    places = [job for job in jobs if job[:JOB] == row.job]
    if not places:
        return None
    return max(places, key=lambda job: _agreement(row, jobs[job]))


def _agreement(row: RivalRow, results: Sequence[Result]) -> tuple[bool, bool]:
    """Return whether a job has runs with the row's recipe and dense network, and with the dense network."""
    alike = [result for result in results if _same_dense(row, result)]
    trained = any(
        result.recipe == row.network.recipe and result.top1("finetuned") is not None for result in alike
    )
    return trained, bool(alike)


def _same_dense(row: RivalRow, result: Result) -> bool:
    theirs, ours = row.line.get("dense_top1"), result.top1("dense")
    return theirs is None or ours is None or abs(theirs - ours) < SAME_DENSE
