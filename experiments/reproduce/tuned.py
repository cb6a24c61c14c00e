"""Networks after fine-tuning: a row for each recipe and agent, and rows of other tools that trained alike.

Rows of one recipe had equal training: the same epochs, rates, augmentations and teacher.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import FileError
from amc.files import atomic_write_text
from amc.reading import read_lines
from experiments.report.text import decimals, markdown
from experiments.reproduce.origins import command_line
from experiments.reproduce.paper import PaperRow
from experiments.reproduce.runs import Result, recipe_of, shown_command
from experiments.statistics import interval_text, paired_differences

HEAD = ("recipe", "agent or tool", "seeds", "MACs", "before", "after", "corrupted, before", "after")
RIVAL_ROWS = "rows.jsonl"
"""The file of ``experiments.benchmark rivals``."""
_SHAPE = {
    "rival": str,
    "seed": int,
    "overrides": [str],
    "job?": [str],
    "macs_ratio?": float,
    "pruned_top1?": float,
    "finetuned_top1?": float,
    "corrupted?": {"pruned": {}, "finetuned": {}},
}


@dataclass(frozen=True)
class Tuned:
    """One fine-tuned network; accuracies are top-1 in percent on the test images.

    Attributes:
        recipe: the words of the command that decide how it was trained.
        name: agent or tool that chose its widths.
        seed: of the run.
        macs_ratio: its MACs, relative to the dense network's.
        before, after: accuracy before and after fine-tuning.
        corrupted: the same two as means over the kinds of corruption; None where they were not measured.
    """

    recipe: str
    name: str
    seed: int
    macs_ratio: float
    before: float
    after: float
    corrupted: tuple[float, float] | None


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


def read_rivals(folders: Iterable[Path]) -> list[RivalRow]:
    """Read the rows of other tools below ``folders``; tools that did not run have none.

    Raises:
        FileError: a row is damaged.
    """
    paths = sorted({path for folder in folders for path in folder.rglob(RIVAL_ROWS)})
    found = []
    for path in paths:
        for number, line in enumerate(read_lines(path, _SHAPE, "remove it to try all tools again"), start=1):
            if "finetuned_top1" not in line:
                continue
            try:
                found.append(_rival(line))
            except (KeyError, TypeError) as error:
                raise FileError(f"{path} line {number} is no row of another tool ({error!r})") from error
    return found


def _rival(line: Mapping[str, Any]) -> RivalRow:
    found = line.get("corrupted")
    network = Tuned(
        recipe_of(" ".join(line["overrides"])),
        line["rival"],
        line["seed"],
        line["macs_ratio"],
        line["pruned_top1"],
        line["finetuned_top1"],
        None if not found else (_mean(found["pruned"]), _mean(found["finetuned"])),
    )
    return RivalRow(tuple(line["job"]), network, line)


def merged_rivals(known: Iterable[RivalRow], new: Iterable[RivalRow]) -> list[RivalRow]:
    """Return rows in a fixed order; a new one replaces that of the same job, tool, seed and recipe."""
    found = {_key(row): row for row in [*known, *new]}
    return [found[key] for key in sorted(found)]


def write_rivals(rows: Sequence[RivalRow], folder: Path) -> None:
    """Write rows so that ``read_rivals`` finds them below ``folder``, without paths of this machine."""
    if not rows:
        return
    lines = [
        {**row.line, "overrides": shown_command(" ".join(row.line["overrides"])).split()} for row in rows
    ]
    (folder / "rivals").mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "rivals" / RIVAL_ROWS, "".join(json.dumps(line) + "\n" for line in lines))


def _key(row: RivalRow) -> tuple[tuple[str, ...], str, int, str]:
    return row.job, row.network.name, row.network.seed, row.network.recipe


def tuned_table(
    results: Sequence[Result], rivals: Sequence[RivalRow], paper: Sequence[PaperRow], against: str
) -> Iterator[str]:
    """Yield the lines of one job's table; none where no network was fine-tuned.

    Args:
        results: the runs of the job.
        rivals: rows of other tools on the same network, data and budget.
        paper: rows of the paper.
        against: the agent that others of the same recipe are compared with.
    """
    ours = [network for result in results if (network := _tuned(result)) is not None]
    groups: dict[tuple[str, str], list[Tuned]] = defaultdict(list)
    for network in [*ours, *(rival.network for rival in rivals)]:
        groups[network.recipe, network.name].append(network)
    if not groups:
        return
    recipes = sorted({recipe for recipe, _ in groups})
    rows = []
    for (recipe, name), own in groups.items():
        others = groups.get((recipe, against), []) if name != against else []
        after = [network.after for network in own]
        rows.append((recipes.index(recipe), -sum(after) / len(after), _cells(own, others)))
    rows.sort(key=lambda row: row[:2])
    yield "After fine-tuning, which is the same within a recipe. Corrupted: the mean over kinds of"
    yield "[corrupted test images](../docs/training.md#corrupted-images). The last column is the accuracy"
    yield f"after fine-tuning less that of `{against}` with the same recipe, paired by seed."
    yield ""
    cells = [[_label(place), *row] for place, _, row in rows]
    yield markdown([[*HEAD, f"less {against}"], *cells, *(_paper_cells(row) for row in paper if row.after)])
    yield ""
    for place, recipe in enumerate(recipes):
        yield f"- recipe {_label(place)}: " + (f"`{recipe}`" if recipe else "the experiment's own settings")
        yield from _origins(f"recipe {_label(place)}", recipe, results, rivals)
    yield ""


def _origins(label: str, recipe: str, results: Sequence[Result], rivals: Sequence[RivalRow]) -> Iterator[str]:
    """Yield a line for each agent and tool with its command and commits."""
    made: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        if result.top1("finetuned") is not None and result.recipe == recipe:
            made[result.agent].append(result.provenance)
    for name, own in made.items():
        yield command_line(f"{label}, {name}", own)
    tools: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for rival in rivals:
        if rival.network.recipe == recipe:
            tools[rival.network.name].append(rival.line)
    for name, lines in tools.items():
        words = shown_command(" ".join(lines[0]["overrides"]))
        seeds = " ".join(str(line["seed"]) for line in lines)
        commits = ", ".join(sorted({str(line.get("commit"))[:7] for line in lines}))
        command = f"python -m experiments.benchmark rivals {words} --folder DIR --seeds {seeds}"
        yield f"- {label}, {name}: `{command}`, commit {commits}"


def _tuned(result: Result) -> Tuned | None:
    before, after = result.top1("pruned"), result.top1("finetuned")
    if before is None or after is None:
        return None
    judged = result.facts["evaluate"]
    corrupted = [judged[name].get("corrupted") for name in ("pruned", "finetuned")]
    means = None if not all(corrupted) else (_mean(corrupted[0]), _mean(corrupted[1]))
    ratio = result.strategy.macs_ratio
    return Tuned(result.recipe, result.agent, result.seed, ratio, before, after, means)


def _cells(own: Sequence[Tuned], others: Sequence[Tuned]) -> list[str]:
    corrupted = [network.corrupted for network in own if network.corrupted is not None]
    columns = zip(*corrupted, strict=True) if len(corrupted) == len(own) else ((), ())
    return [
        own[0].name,
        ", ".join(str(network.seed) for network in own),
        f"{100 * max(network.macs_ratio for network in own):.2f}%",
        interval_text([network.before for network in own]),
        interval_text([network.after for network in own]),
        *(interval_text(column) for column in columns),
        interval_text(paired_differences(_after(own), _after(others))),
    ]


def _after(networks: Sequence[Tuned]) -> dict[int, float]:
    return {network.seed: network.after for network in networks}


def _paper_cells(row: PaperRow) -> list[str]:
    before, after = (
        decimals(value) + (" (M)" if name in row.remembered and value is not None else "")
        for name, value in (("before", row.before), ("after", row.after))
    )
    macs = "" if row.macs_ratio is None else f"{100 * row.macs_ratio:.2f}%"
    return ["the paper's", f"*{row.agent}, from {row.dense:.2f}*", "", macs, before, after, "", "", ""]


def _label(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
