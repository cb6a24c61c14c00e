"""The section of one job: a row for each agent over its seeds, the paper's rows beside, and their origin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from amc.workers.settings import WorkerSettings
from experiments.report.text import MISSING, decimals, markdown
from experiments.reproduce.commands import setting_of
from experiments.reproduce.origins import origin
from experiments.reproduce.paper import PaperRow, paper_rows
from experiments.reproduce.rivals import RivalRow, place_of
from experiments.reproduce.runs import Jobs, Result, by_row, row_names, searches
from experiments.reproduce.tuned import tuned_table
from experiments.statistics import less_text, mean_of, mean_text

HEAD = (
    "agent", "seeds", "evaluations", "MACs", "before fine-tuning", "drop", "evaluations, CPU s", "wall s",
    "divergence",
)  # fmt: skip


def paper_of(results: Sequence[Result]) -> list[PaperRow]:
    """Return the paper's rows on the network, data and budget of one job."""
    strategy, data = results[0].strategy, str(results[0].provenance["data"]["name"])
    model, images = str(strategy.model["name"]), (data, int(strategy.model["num_classes"]))
    return paper_rows(model, images, strategy.budget["kind"], float(strategy.budget["ratio"]))


def tables(jobs: Jobs, against: str, figures: bool = False, rivals: Sequence[RivalRow] = ()) -> str:
    """Return one section of Markdown for every job, those without settings of older runs first.

    Args:
        jobs: The runs of every job.
        against: The agent that others are compared with.
        figures: Whether to refer to the figures.
        rivals: Rows of other tools, which stand in the table of fine-tuned networks.
    """
    todays_first = dict(sorted(jobs.items(), key=lambda item: " ".join(item[0]).count("`")))
    places = [(place_of(row, todays_first), row) for row in rivals]
    sections = [
        _section(job, own, against, figures, [row for place, row in places if place == job])
        for job, own in todays_first.items()
    ]
    alone = sorted({row.job for place, row in places if place is None})
    return "\n".join([*sections, *(_rivals_alone(job, rivals, against) for job in alone)])


def _rivals_alone(job: tuple[str, ...], rivals: Sequence[RivalRow], against: str) -> str:
    """Return the section of a job that none of our agents has run."""
    rows = tuned_table([], [row for row in rivals if row.job == job], [], against)
    return "\n".join([f"## {', '.join(job)}", "", *rows])


def _section(
    job: tuple[str, ...], tuned: Sequence[Result], against: str, figures: bool, rivals: Sequence[RivalRow]
) -> str:
    results = searches(tuned)
    agents, paper = by_row(results), paper_of(results)
    against = _reference(agents, against)
    rows = [
        _row(name, own, agents.get(against, []) if name != against else []) for name, own in agents.items()
    ]
    rows.sort(key=lambda row: -row[0])
    head = [*HEAD, f"less {against}"]
    lines = [
        f"## {', '.join(job)}",
        "",
        _dense(results),
        "the mean over the seeds with its 95% t interval (Student's), which one seed does not have. CPU",
        "seconds are those of the evaluations. Wall seconds are those of the search; they are left out where",
        "it was taken up again, which only its last command would count. Divergence: the mean KL",
        "divergence (nats) from the dense network on the test images before fine-tuning, which varies less",
        f"by chance than accuracy does. The last column is the row's accuracy less that of `{against}`,",
        "paired by seed: the mean of the differences over the seeds that both have, with its t interval.",
        "",
        markdown([head, *(cells for _, cells in rows), *(_paper_cells(row, len(head)) for row in paper)]),
        "",
        *([f"![{', '.join(job)}](figures/{results[0].slug}.svg)", ""] if figures else []),
        *tuned_table(tuned, rivals, paper, against),
        *_correlations(results),
        *origin({name: [result.provenance for result in own] for name, own in agents.items()}),
        *(["- (M): from memory of the paper"] if any(row.remembered for row in paper) else []),
        "",
    ]
    return "\n".join(lines)


def _dense(results: Sequence[Result]) -> str:
    dense = sorted({f"{value:.2f}" for result in results if (value := result.top1("dense")) is not None})
    known = f"{' or '.join(dense)}% top-1 on the test images" if dense else "it has no accuracy"
    return f"Dense network: {known}. Accuracies in percent:"


def _reference(agents: Mapping[str, Sequence[Result]], against: str) -> str:
    """Return the row that others are compared with: the agent, its longest search, or a preset of it."""
    if against in agents:
        return against
    lengths = [name for name in agents if name.startswith(f"{against}, ")]
    presets = [name for name in agents if name.startswith(f"{against}_")]
    longest = max(lengths, key=lambda name: agents[name][0].asked_episodes, default=None)
    return longest or (presets[0] if presets else against)


def _row(name: str, results: Sequence[Result], others: Sequence[Result]) -> tuple[float, list[str]]:
    """Return the accuracy that rows are sorted by, and the cells of one agent."""
    dense, pruned = _by_seed(results, "dense"), _by_seed(results, "pruned")
    searched = [result for result in results if "search" in result.facts]
    cells = [
        name,
        ", ".join(str(result.widths_seed) for result in results),
        _mean([result.facts["search"]["evaluations"] for result in searched]),
        f"{100 * max(result.strategy.macs_ratio for result in results):.2f}%",
        mean_text([*pruned.values()]) or MISSING,
        mean_text([dense[seed] - cut for seed, cut in pruned.items() if seed in dense]) or MISSING,
        _mean([result.facts["search"]["evaluation_cpu_seconds"] for result in searched]),
        _wall(searched),
        _divergence(results),
        less_text(pruned, _by_seed(others, "pruned")),
    ]
    return mean_of([*pruned.values()]).value if pruned else -math.inf, cells


def _by_seed(results: Sequence[Result], network: str) -> dict[int, float]:
    """Return the test accuracy of a network for every search, in percent; none where it has no accuracy."""
    return {result.widths_seed: value for result in results if (value := result.top1(network)) is not None}


def _mean(values: Sequence[float]) -> str:
    return f"{mean_of(values).value:.0f}" if values else ""


def _wall(searched: Sequence[Result]) -> str:
    """Return the mean wall seconds; nothing where they are those of the last command of several only.

    Records of earlier releases do not tell: that command alone took less time than the evaluations of all,
    spread over all threads.
    """
    if any(result.facts["search"].get("resumed") for result in searched):
        return ""
    walls = [result.facts["search"]["seconds"] for result in searched]
    least = [result.facts["search"]["evaluation_cpu_seconds"] / _threads(result) for result in searched]
    return _mean(walls) if all(wall >= own for wall, own in zip(walls, least, strict=True)) else ""


def _threads(result: Result) -> int:
    """Return the number of threads that a search has evaluated networks with, those of all workers."""
    own = int(result.provenance["device"]["threads"])
    command = str(result.provenance["command"])
    if setting_of(command, "workers") in (None, "serial"):
        return own
    count, threads = (setting_of(command, f"workers.{name}") for name in ("count", "threads"))
    return max(own, int(count or WorkerSettings.count) * int(threads or WorkerSettings.threads))


def _divergence(results: Sequence[Result]) -> str:
    """Return the divergence before fine-tuning, where it was measured for all."""
    found = [value for result in results if (value := result.divergence("pruned")) is not None]
    return mean_text(found, digits=3) if len(found) == len(results) else ""


def _paper_cells(row: PaperRow, columns: int) -> list[str]:
    def accuracy(name: str, value: float | None) -> str:
        mark = " (M)" if name in row.remembered and value is not None else ""
        return decimals(value) + mark

    drop = None if row.before is None else row.dense - row.before
    macs = "" if row.macs_ratio is None else f"{100 * row.macs_ratio:.2f}%"
    tuned = "" if row.after is None else f", fine-tuned: {accuracy('after', row.after)}"
    name = f"*the paper's {row.agent}, from {row.dense:.2f} on {row.images}{tuned}*"
    cells = [name, "", "", macs, accuracy("before", row.before), decimals(drop)]
    return cells + [""] * (columns - len(cells))


def _correlations(results: Sequence[Result]) -> Iterator[str]:
    """Yield lines on how well returns predict accuracies, for the runs with stage ``correlate``."""
    names = {"return": "return", "top1_pruned": "accuracy before", "top1_finetuned": "accuracy after"}
    name = row_names(results)
    for result in results:
        facts = result.facts.get("correlate")
        if facts is None:
            continue
        yield (
            f"Rank correlation over {facts['policies']} policies that `{name(result)}` met (seed "
            f"{result.seed}; test images; fine-tuned for {facts['epochs']} epochs each):"
        )
        yield ""
        for pair, (value, low, high) in facts["spearman"].items():
            one, other = (names[name] for name in pair.split(" ~ "))
            yield f"- {one} and {other} fine-tuning: {value:.2f} [{low:.2f}, {high:.2f}]"
        yield ""
