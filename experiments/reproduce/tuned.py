"""Networks after fine-tuning: a row for each recipe and agent, and rows of other tools that trained alike.

Rows of one recipe had equal training: the same epochs, rates, augmentations and teacher.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from experiments.report.text import decimals, markdown
from experiments.reproduce.commands import command_of, recipe_label, short_commit, shown_command, shown_recipe
from experiments.reproduce.origins import command_lines
from experiments.reproduce.paper import PaperRow
from experiments.reproduce.rivals import RivalRow, Tuned, corrupted_of
from experiments.reproduce.runs import Result, row_names
from experiments.statistics import less_text, mean_text

Group = tuple[str, str, int | None]
"""Recipe, name, and the seed of the search whose widths were trained with several seeds; None of others."""
HEAD = ("recipe", "agent or tool", "seeds", "MACs", "before", "after", "corrupted, before", "after")


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
    name_of = row_names(results)
    ours = [network for result in results if (network := _tuned(result, name_of(result))) is not None]
    groups = _groups([*ours, *(rival.network for rival in rivals)])
    if not groups:
        return
    recipes, kinds = sorted({recipe for recipe, _, _ in groups}), _shared_kinds(groups.values())
    rows = []
    for recipe, name, widths in _shown(groups):
        own = groups[recipe, name, widths]
        others = groups.get((recipe, against, widths), []) if name != against else []
        shown = name if widths is None else f"{name}, widths of seed {widths}"
        after = [network.after for network in own]
        rows.append((recipes.index(recipe), -sum(after) / len(after), [shown, *_cells(own, others, kinds)]))
    rows.sort(key=lambda row: row[:2])
    yield "After fine-tuning, which is the same within a recipe: the mean over the seeds with its 95% t"
    yield "interval, which one seed does not have."
    yield from _about_corrupted(results, groups.values(), kinds)
    yield f"The last column is the accuracy after fine-tuning less that of `{against}` with the same"
    yield "recipe, paired by seed."
    yield ""
    cells = [[recipe_label(place), *row] for place, _, row in rows]
    yield markdown([[*HEAD, f"less {against}"], *cells, *(_paper_cells(row) for row in paper if row.after)])
    yield ""
    for place, recipe in enumerate(recipes):
        yield f"- recipe {recipe_label(place)}: {shown_recipe(recipe)}"
        yield from _origins(f"recipe {recipe_label(place)}", recipe, results, name_of, rivals)
    yield ""


def _groups(networks: Sequence[Tuned]) -> dict[Group, list[Tuned]]:
    """Group networks by recipe and name, each with the widths that its own seed has found.

    Those that one search's widths were trained to with several seeds are a group of their own as well.
    """
    searched = {(one.recipe, one.name, one.widths_seed) for one in networks if one.seed != one.widths_seed}
    groups: dict[Group, list[Tuned]] = defaultdict(list)
    for one in networks:
        if one.seed == one.widths_seed:
            groups[one.recipe, one.name, None].append(one)
        if (one.recipe, one.name, one.widths_seed) in searched:
            groups[one.recipe, one.name, one.widths_seed].append(one)
    return groups


def _shown(groups: Mapping[Group, Sequence[Tuned]]) -> list[Group]:
    """Return the groups that have a row: all but those whose networks all stand in groups of one search."""
    return [
        key
        for key, own in groups.items()
        if key[2] is not None or any((*key[:2], one.seed) not in groups for one in own)
    ]


def _shared_kinds(groups: Collection[Sequence[Tuned]]) -> list[str]:
    """Return the kinds of corruption that every network was judged on which was judged on any."""
    judged = [side for own in groups for network in own for side in network.corrupted or ()]
    return sorted(set.intersection(*map(set, judged))) if judged else []


def _about_corrupted(
    results: Sequence[Result], groups: Collection[Sequence[Tuned]], kinds: Sequence[str]
) -> Iterator[str]:
    """Yield lines on what the columns of corrupted images show, if a network was judged on any."""
    if any(network.corrupted for own in groups for network in own):
        shown = f"the mean over {', '.join(kinds)}" if kinds else "blank, as the rows share no kind"
        yield f"[Corrupted test images](../docs/training.md#corrupted-images): {shown}."
    judged = [own for r in results if (own := r.facts["evaluate"]["dense"].get("corrupted"))]
    dense = sorted({f"{_mean(own, kinds):.2f}" for own in judged if kinds and own.keys() >= {*kinds}})
    if dense:
        yield f"The dense network has {' or '.join(dense)}% on them."


def _origins(
    label: str,
    recipe: str,
    results: Sequence[Result],
    name_of: Callable[[Result], str],
    rivals: Sequence[RivalRow],
) -> Iterator[str]:
    """Yield lines for each agent and tool with its commands and commits."""
    made: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        if result.top1("finetuned") is not None and result.recipe == recipe:
            made[name_of(result)].append(result.provenance)
    for name, own in made.items():
        yield from command_lines(f"{label}, {name}", own)
    tools: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for rival in rivals:
        if rival.network.recipe == recipe:
            tools[rival.network.name].append(rival.line)
    for name, lines in tools.items():
        words = shown_command(command_of(lines[0]["overrides"]))
        seeds = " ".join(str(line["seed"]) for line in lines)
        commits = ", ".join(sorted({short_commit(line.get("commit")) for line in lines}))
        tool = f"--rivals {shlex.quote(name)} --folder DIR --seeds {seeds}"
        command = f"python -m experiments.benchmark rivals {words} {tool}"
        yield f"- {label}, {name}: `{command}`, commit {commits}"


def _tuned(result: Result, name: str) -> Tuned | None:
    before, after = result.top1("pruned"), result.top1("finetuned")
    if before is None or after is None:
        return None
    judged = result.facts["evaluate"]
    corrupted = corrupted_of({name: judged[name].get("corrupted") for name in ("pruned", "finetuned")})
    ratio = result.strategy.macs_ratio
    seeds = result.seed, result.widths_seed
    return Tuned(result.recipe, name, *seeds, ratio, before, after, corrupted)


def _cells(own: Sequence[Tuned], others: Sequence[Tuned], kinds: Sequence[str]) -> list[str]:
    corrupted = [network.corrupted for network in own if network.corrupted is not None]
    shown = corrupted if kinds and len(corrupted) == len(own) else []
    return [
        ", ".join(str(network.seed) for network in own),
        f"{100 * max(network.macs_ratio for network in own):.2f}%",
        mean_text([network.before for network in own]),
        mean_text([network.after for network in own]),
        *(mean_text([_mean(pair[side], kinds) for pair in shown]) for side in (0, 1)),
        less_text(_after(own), _after(others)),
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


def _mean(values: Mapping[str, float], kinds: Sequence[str]) -> float:
    return sum(values[kind] for kind in kinds) / len(kinds)
