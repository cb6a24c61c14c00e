"""Tables and figures from run folders: ``python -m experiments.reproduce RUNS --out experiments/RESULTS.md``.

Every run folder below the given ones that has a strategy and test accuracies is a row's seed. Runs of the
same network, data and budget are one table; its rows are the agents, over all their seeds: interquartile mean
and 95% bootstrap interval, and the difference to one of them. The paper's figures stand beside. Beside the
tables ``figures/`` gets a picture of every job, ``strategies/`` the best strategy of every agent, chosen
by the search's own return, and ``records/`` what all this was drawn from: the next call adds its runs to
them, one without RUNS draws them again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import conf
from amc.errors import AmcError
from amc.files import atomic_write_text
from experiments.config.stages import STAGES
from experiments.reproduce.figures import job_svg
from experiments.reproduce.paper import PaperRow, paper_rows
from experiments.reproduce.records import merged, read_records, write_records
from experiments.reproduce.runs import Result, experiment_of, read_results, shown_command
from experiments.reproduce.sparse_runs import read_sparse, sparse_tables
from experiments.statistics import Interval, bootstrap, bootstrap_difference, interquartile_mean

HEAD = (
    "agent", "seeds", "evaluations", "MACs", "before fine-tuning", "drop", "after fine-tuning",
    "search, CPU s", "wall s", "divergence",
)  # fmt: skip
Jobs = Mapping[tuple[str, ...], Sequence[Result]]


def by_job(results: Sequence[Result]) -> Jobs:
    """Group runs that stand in one table."""
    jobs: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        jobs[result.job].append(result)
    return jobs


def tables(jobs: Jobs, against: str, figures: bool = False) -> str:
    """Return one section of markdown for every job, those without settings of older runs first.

    Args:
        against: the agent that others are compared with.
        figures: whether to refer to the figures.
    """
    todays_first = sorted(jobs.items(), key=lambda item: " ".join(item[0]).count("`"))
    return "\n".join(_section(job, own, against, figures) for job, own in todays_first)


def _paper(results: Sequence[Result]) -> list[PaperRow]:
    strategy = results[0].strategy
    return paper_rows(str(strategy.model["name"]), strategy.budget["kind"], float(strategy.budget["ratio"]))


def _section(job: tuple[str, ...], results: Sequence[Result], against: str, figures: bool) -> str:
    agents: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        agents[result.agent].append(result)
    rows = [_row(name, own, agents.get(against, [])) for name, own in agents.items()]
    rows.sort(key=lambda row: -row[0])
    dense = sorted({f"{_known(result.top1('dense')):.2f}" for result in results})
    paper = _paper(results)
    head = [*HEAD, f"less {against}"]
    lines = [
        f"## {', '.join(job)}",
        "",
        f"Dense network: {' or '.join(dense)}% top-1 on the test images. Accuracies in percent:",
        "interquartile mean over the seeds with its 95% bootstrap interval. Divergence: the mean KL",
        "divergence (nats) from the dense network on the test images before fine-tuning, which varies less",
        f"by chance than accuracy does. The last column is the row's accuracy less that of `{against}`.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(line for _, line in rows),
        *(_paper_line(row, len(head)) for row in paper),
        "",
        *([f"![{', '.join(job)}](figures/{results[0].slug}.svg)", ""] if figures else []),
        *_correlations(results),
        *_origin(agents),
        *(["- (M): from memory of the paper"] if any(row.remembered for row in paper) else []),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, results: Sequence[Result], others: Sequence[Result]) -> tuple[float, str]:
    pruned = [_known(result.top1("pruned")) for result in results]
    dense = [_known(result.top1("dense")) for result in results]
    before = bootstrap(pruned)
    drop = bootstrap([full - cut for full, cut in zip(dense, pruned, strict=True)])
    tuned = [value for result in results if (value := result.top1("finetuned")) is not None]
    searches = [result.facts["search"] for result in results if "search" in result.facts]
    theirs = [_known(result.top1("pruned")) for result in others]
    same = not others or results[0].agent == others[0].agent
    cells = [
        name,
        ", ".join(str(result.seed) for result in results),
        _mean([search["evaluations"] for search in searches]),
        f"{100 * max(result.strategy.macs_ratio for result in results):.2f}%",
        _text(before, len(pruned)),
        _text(drop, len(pruned)),
        _tuned(tuned, len(results)),
        _mean([search["evaluation_cpu_seconds"] for search in searches]),
        _mean([search["seconds"] for search in searches]),
        _divergence(results),
        "" if same else _text(bootstrap_difference(pruned, theirs), len(pruned)),
    ]
    return before.value, f"| {' | '.join(cells)} |"


def _divergence(results: Sequence[Result]) -> str:
    """Divergence before fine-tuning, where it was measured for all."""
    found = [value for result in results if (value := result.divergence("pruned")) is not None]
    if not found or len(found) < len(results):
        return ""
    interval = bootstrap(found)
    limits = f" [{interval.low:.3f}, {interval.high:.3f}]" if len(found) > 1 else ""
    return f"{interval.value:.3f}{limits}"


def _mean(values: Sequence[float]) -> str:
    return f"{interquartile_mean(np.asarray(values)):.0f}" if values else ""


def _tuned(values: Sequence[float], runs: int) -> str:
    """Accuracies after fine-tuning; where not every run was fine-tuned it says how many were."""
    if not values:
        return ""
    some = f" ({len(values)} run{'s' if len(values) > 1 else ''})" if len(values) < runs else ""
    return _text(bootstrap(values), len(values)) + some


def _paper_line(row: PaperRow, columns: int) -> str:
    def cell(name: str, value: float | None) -> str:
        mark = " (M)" if name in row.remembered else ""
        return "" if value is None else f"{value:.2f}{mark}"

    drop = "" if row.before is None else f"{row.dense - row.before:.2f}"
    macs = "" if row.macs_ratio is None else f"{100 * row.macs_ratio:.2f}%"
    name = f"*the paper's {row.agent}, from {row.dense:.2f} on {row.images}*"
    cells = [name, "", "", macs, cell("before", row.before), drop, cell("after", row.after)]
    return f"| {' | '.join(cells + [''] * (columns - len(cells)))} |"


def _known(value: float | None) -> float:
    if value is None:
        raise AmcError(
            "a run's evaluate.json has no dense or pruned network: run stages=[prune,evaluate] on it"
        )
    return value


def _text(interval: Interval, count: int) -> str:
    """An interval; of a single run there is none."""
    return str(interval) if count > 1 else f"{interval.value:.2f}"


def _correlations(results: Sequence[Result]) -> Iterator[str]:
    """Tell what returns foretold, where stage ``correlate`` was run."""
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


def _origin(agents: Mapping[str, Sequence[Result]]) -> list[str]:
    lines = []
    for name, results in agents.items():
        lines.append(_command_line(name, [result.provenance for result in results]))
    devices = [result.provenance["device"] for own in agents.values() for result in own]
    threads = sorted({int(device["threads"]) for device in devices})
    names = sorted({str(device.get("cpu") or device["kind"]) for device in devices})
    counted = f"{' or '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
    return [*lines, f"- measured on {', '.join(names)}, {counted}"]


def _command_line(name: str, provenances: Sequence[Mapping[str, Any]]) -> str:
    command = shown_command(str(provenances[0]["command"]))
    return f"- {name}: `{command}`, commit {_commits(provenances)}"


def _commits(provenances: Sequence[Mapping[str, Any]]) -> str:
    """The commits that runs were made at; where stages differ in it, which stages."""
    made: dict[str, set[str]] = defaultdict(set)
    for facts in provenances:
        for stage, commit in facts["stage_commits"].items():
            made[str(commit)[:7]].add(stage)
    if len({frozenset(stages) for stages in made.values()}) == 1:
        return ", ".join(sorted(made))
    place = {name: number for number, name in enumerate(STAGES)}
    return "; ".join(
        f"{commit} ({', '.join(sorted(stages, key=place.__getitem__))})"
        for commit, stages in sorted(made.items(), key=lambda item: sorted(place[name] for name in item[1]))
    )


def not_run(ran: Collection[str | None]) -> str:
    """Return a section on the recipes (``conf/experiment``) that are not among those that ran."""
    folder = Path(conf.__file__).parent / "experiment"
    lines = []
    for path in sorted(folder.glob("*.yaml")):
        if path.stem not in ran:
            comment = [
                line[1:].strip()
                for line in path.read_text().splitlines()
                if line.startswith("# ") and "@package" not in line
            ]
            command = next(line for line in comment if line.startswith("amc "))
            about = " ".join(line for line in comment if not line.startswith("amc "))
            lines.append(f"- **not run here**: `{command}`. {about}")
    head = [
        "## Recipes without a run",
        "",
        "Complete, and run at toy size by the tests. A table above of the same network is of other images.",
        "",
    ]
    return "\n".join([*head, *lines, ""]) if lines else ""


def write_strategies(jobs: Jobs, folder: Path) -> None:
    """Write the best strategy of every job and agent by the search's return: test images choose nothing."""
    for results in jobs.values():
        searched = [result for result in results if math.isfinite(result.value)]
        for agent in sorted({result.agent for result in searched}):
            best = max((r for r in searched if r.agent == agent), key=lambda result: result.value)
            folder.mkdir(parents=True, exist_ok=True)
            best.strategy.save(folder / f"{best.slug}_{agent}.json")


def _tell(line: str) -> None:
    print(f"reproduce: {line}", file=sys.stderr)


def main() -> None:
    """Write the tables, and beside them figures and strategies."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="run folders, or folders of run folders")
    parser.add_argument("--out", type=Path, help="markdown file; printed, without records, if not given")
    parser.add_argument("--against", default="ddpg", help="agent that others are compared with")
    options = parser.parse_args()
    try:
        results, sparse = read_results(options.folders), read_sparse(options.folders)
        if options.out is not None:
            results = merged(read_records(options.out.parent / "records"), results, _tell)
        if not results and not sparse:
            raise AmcError(
                "no run below the given folders has been evaluated: run stages=[...,evaluate] first"
            )
        jobs = by_job(results)
        provenances = [*(own.provenance for own in results), *(own.provenance for own in sparse)]
        sections = (
            tables(jobs, options.against, options.out is not None),
            *([sparse_tables(sparse, _command_line)] if sparse else []),
            not_run({experiment_of(facts) for facts in provenances}),
        )
        text = "# Results\n\n" + "\n".join(sections)
        if options.out is None:
            print(text)
            return
        for own in jobs.values():
            picture = options.out.parent / "figures" / f"{own[0].slug}.svg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(picture, job_svg(own, _paper(own)))
        write_strategies(jobs, options.out.parent / "strategies")
        write_records(results, options.out.parent / "records")
        atomic_write_text(options.out, text)
    except AmcError as error:
        _tell(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
