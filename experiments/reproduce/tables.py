"""The section of one job: a row for each agent over its seeds, the paper's rows beside, and their origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from amc.errors import FileError
from experiments.report.text import MISSING, decimals, markdown
from experiments.reproduce.origins import origin
from experiments.reproduce.paper import PaperRow, paper_rows
from experiments.reproduce.runs import JOB, Jobs, Result, by_agent, searches
from experiments.reproduce.tuned import RivalRow, tuned_table
from experiments.statistics import (
    bootstrap,
    bootstrap_difference,
    interquartile_mean,
    interval_text,
    paired_differences,
    spelled,
)

HEAD = (
    "agent", "seeds", "evaluations", "MACs", "before fine-tuning", "drop", "search, CPU s", "wall s",
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

    Raises:
        FileError: A run has no accuracies of its dense and its pruned network.
    """
    todays_first = sorted(jobs.items(), key=lambda item: " ".join(item[0]).count("`"))
    places = {job[:JOB]: job for job, _ in reversed(todays_first)}
    beside = {job: [row for row in rivals if places.get(row.job) == job] for job in jobs}
    sections = [_section(job, own, against, figures, beside[job]) for job, own in todays_first]
    alone = sorted({row.job for row in rivals} - places.keys())
    return "\n".join([*sections, *(_rivals_alone(job, rivals, against) for job in alone)])


def _rivals_alone(job: tuple[str, ...], rivals: Sequence[RivalRow], against: str) -> str:
    """Return the section of a job that none of our agents has run."""
    rows = tuned_table([], [row for row in rivals if row.job == job], [], against)
    return "\n".join([f"## {', '.join(job)}", "", *rows])


def _section(
    job: tuple[str, ...], tuned: Sequence[Result], against: str, figures: bool, rivals: Sequence[RivalRow]
) -> str:
    results = searches(tuned)
    agents, paper = by_agent(results), paper_of(results)
    rows = [_row(name, own, agents.get(against, [])) for name, own in agents.items()]
    rows.sort(key=lambda row: -row[0])
    head = [*HEAD, f"less {against}"]
    lines = [
        f"## {', '.join(job)}",
        "",
        _dense(results),
        "interquartile mean over the seeds with its 95% bootstrap interval. Divergence: the mean KL",
        "divergence (nats) from the dense network on the test images before fine-tuning, which varies less",
        f"by chance than accuracy does. The last column is the row's accuracy less that of `{against}`,",
        "paired by seed: the interquartile mean of the differences over the seeds that both have.",
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
    dense = sorted({f"{value:.2f}" for value in _top1(results, "dense")})
    known = f"{' or '.join(dense)}% top-1 on the test images" if dense else "it has no accuracy"
    return f"Dense network: {known}. Accuracies in percent:"


def _row(name: str, results: Sequence[Result], others: Sequence[Result]) -> tuple[float, list[str]]:
    """Return the accuracy that rows are sorted by, and the cells of one agent."""
    dense, pruned = _top1(results, "dense"), _top1(results, "pruned")
    searches = [result.facts["search"] for result in results if "search" in result.facts]
    cells = [
        name,
        ", ".join(str(result.seed) for result in results),
        _mean([search["evaluations"] for search in searches]),
        f"{100 * max(result.strategy.macs_ratio for result in results):.2f}%",
        interval_text(pruned) or MISSING,
        interval_text([full - cut for full, cut in zip(dense, pruned, strict=True)]) or MISSING,
        _mean([search["evaluation_cpu_seconds"] for search in searches]),
        _mean([search["seconds"] for search in searches]),
        _divergence(results),
        _less(results, others),
    ]
    return bootstrap(pruned).value if pruned else -np.inf, cells


def _top1(results: Sequence[Result], network: str) -> list[float]:
    """Return the test accuracies of a network, in percent; none where it has no accuracy.

    Raises:
        FileError: A run has not evaluated the network.
    """
    if any(network not in result.facts["evaluate"] for result in results):
        raise FileError(
            "a run's evaluate.json has no dense or pruned network: run stages=[prune,evaluate] on it"
        )
    return [value for result in results if (value := result.top1(network)) is not None]


def _mean(values: Sequence[float]) -> str:
    return f"{interquartile_mean(np.asarray(values)):.0f}" if values else ""


def _divergence(results: Sequence[Result]) -> str:
    """Return the divergence before fine-tuning, where it was measured for all."""
    found = [value for result in results if (value := result.divergence("pruned")) is not None]
    return interval_text(found, digits=3) if len(found) == len(results) else ""


def _less(results: Sequence[Result], others: Sequence[Result]) -> str:
    """Return an agent's accuracy less that of the agent it is compared with, paired by seed.

    Seeds that one of the two lacks are left out; the number of pairs then stands beside the difference. Two
    agents without a common seed are compared as independent groups.
    """
    ours, theirs = _by_seed(results), _by_seed(others)
    if not (ours and theirs) or results[0].agent == others[0].agent:
        return ""
    pairs = paired_differences(ours, theirs)
    if not pairs:
        independent = bootstrap_difference([*ours.values()], [*theirs.values()])
        return f"{spelled(independent, len(ours))} (unpaired)"
    all_paired = len(pairs) == max(len(ours), len(theirs))
    some = "" if all_paired else f" ({len(pairs)} seed{'s' if len(pairs) > 1 else ''})"
    return interval_text(pairs) + some


def _by_seed(results: Sequence[Result]) -> dict[int, float]:
    """Return the accuracy before fine-tuning of every seed, in percent."""
    return {result.seed: value for result in results if (value := result.top1("pruned")) is not None}


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
    for result in results:
        facts = result.facts.get("correlate")
        if facts is None:
            continue
        yield (
            f"Rank correlation over {facts['policies']} policies that `{result.agent}` met (seed "
            f"{result.seed}; test images; fine-tuned for {facts['epochs']} epochs each):"
        )
        yield ""
        for pair, (value, low, high) in facts["spearman"].items():
            one, other = (names[name] for name in pair.split(" ~ "))
            yield f"- {one} and {other} fine-tuning: {value:.2f} [{low:.2f}, {high:.2f}]"
        yield ""
