"""Tables from run folders: ``python -m experiments.reproduce RUNS --out experiments/RESULTS.md``.

Every run folder below the given ones that has a strategy and test accuracies is a row's seed. Runs of the
same network, data and budget are one table; its rows are the agents, over all their seeds: interquartile mean
and 95% bootstrap interval, and the difference to one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from amc.errors import AmcError
from amc.files import atomic_write_text
from amc.strategy import Strategy
from experiments.statistics import Interval, bootstrap, bootstrap_difference


@dataclass(frozen=True)
class Result:
    """What one run has measured.

    Attributes:
        job: network, data and budget: what its table is about.
        agent: who searched.
        seed: of the run.
        facts: what the stages recorded, by stage.
        macs_ratio: of the strategy.
        value: return of the strategy on ``search_val``.
        provenance: commit, command, device and versions.
    """

    job: tuple[str, ...]
    agent: str
    seed: int
    facts: Mapping[str, Mapping[str, Any]]
    macs_ratio: float
    value: float
    provenance: Mapping[str, Any]

    def top1(self, network: str) -> float | None:
        """Test accuracy in percent of ``dense``, ``pruned`` or ``finetuned``, where it was measured."""
        found = self.facts["evaluate"].get(network)
        return None if found is None else float(found["top1"])


def read_results(folders: Iterable[Path]) -> list[Result]:
    """Read all runs below ``folders``, in the order of their paths.

    Raises:
        AmcError: there are none, or a record is damaged.
    """
    places = sorted(
        {path.parent.parent for folder in folders for path in folder.rglob("stages/evaluate.json")}
    )
    if not places:
        raise AmcError("no run below the given folders has been evaluated: run stages=[...,evaluate] first")
    return [_read(place) for place in places]


def _read(folder: Path) -> Result:
    try:
        strategy = Strategy.load(folder / "strategy.json")
        facts = {path.stem: json.loads(path.read_text()) for path in (folder / "stages").glob("*.json")}
        provenance = json.loads((folder / "provenance.json").read_text())
        budget = strategy.budget
        job = (
            str(strategy.model["name"]),
            str(provenance["data"]["name"]),
            f"{100 * float(budget['ratio']):g}% of the {budget['kind']}",
            *_proxy(folder),
        )
        found = strategy.provenance
        return Result(
            job, found["agent"], strategy.seed or 0, facts, strategy.macs_ratio, found["value"], provenance
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AmcError(f"{folder} is no finished run ({error!r})") from error


def _proxy(folder: Path) -> Iterator[str]:
    """Tell how candidates were judged, where the folder knows: searches differ in it."""
    path = folder / ".hydra" / "config.yaml"
    if path.exists():
        config = OmegaConf.load(path)
        images, refit = config.data.search_val, config.compressor.sequential_images
        yield f"judged on {images:,} images" + (f" after a refit on {refit:,}" if refit else "")


def tables(results: Sequence[Result], against: str) -> str:
    """Return one section of markdown for every job.

    Args:
        against: the agent that others are compared with.
    """
    jobs: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        jobs[result.job].append(result)
    return "\n".join(_section(job, own, against) for job, own in jobs.items())


def _section(job: tuple[str, ...], results: Sequence[Result], against: str) -> str:
    agents: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        agents[result.agent].append(result)
    rows = [_row(name, own, agents.get(against, [])) for name, own in agents.items()]
    rows.sort(key=lambda row: -row[0])
    dense = next((result.top1("dense") for result in results), None)
    head = [
        "agent", "seeds", "evaluations", "MACs", "before fine-tuning", "drop", "after fine-tuning",
        "search, CPU s", f"less {against}",
    ]  # fmt: skip
    lines = [
        f"## {', '.join(job)}",
        "",
        f"Dense network: {dense:.2f}% top-1 on the test images. Accuracies in percent: interquartile mean",
        f"over the seeds with its 95% bootstrap interval; the last column is the row less `{against}`.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(line for _, line in rows),
        "",
        *_origin(agents),
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
    seconds = [search["evaluation_cpu_seconds"] for search in searches]
    theirs = [_known(result.top1("pruned")) for result in others]
    same = not others or results[0].agent == others[0].agent
    evaluations = [search["evaluations"] for search in searches]
    cells = [
        name,
        ", ".join(str(result.seed) for result in results),
        f"{bootstrap(evaluations).value:.0f}" if evaluations else "",
        f"{100 * max(result.macs_ratio for result in results):.2f}%",
        _text(before, len(pruned)),
        _text(drop, len(pruned)),
        _text(bootstrap(tuned), len(tuned)) if tuned else "",
        f"{bootstrap(seconds).value:.0f}" if seconds else "",
        "" if same else _text(bootstrap_difference(pruned, theirs), len(pruned)),
    ]
    return before.value, f"| {' | '.join(cells)} |"


def _known(value: float | None) -> float:
    assert value is not None  # the stage evaluate measures dense and pruned
    return value


def _text(interval: Interval, count: int) -> str:
    """An interval; of a single run there is none."""
    return str(interval) if count > 1 else f"{interval.value:.2f}"


def _origin(agents: Mapping[str, Sequence[Result]]) -> list[str]:
    lines = []
    for name, results in agents.items():
        commits = sorted({str(result.provenance.get("commit"))[:7] for result in results})
        command = shown_command(str(results[0].provenance["command"]))
        lines.append(f"- {name}: `{command}`, commit {', '.join(commits)}")
    devices = [result.provenance["device"] for own in agents.values() for result in own]
    threads = sorted({int(device["threads"]) for device in devices})
    names = sorted({str(device.get("cpu") or device["kind"]) for device in devices})
    counted = f"{' or '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
    return [*lines, f"- measured on {', '.join(names)}, {counted}"]


def shown_command(command: str) -> str:
    """Return a command without the places of one machine, which ``DIR`` and ``FILE`` stand for."""
    words = []
    for word in command.split():
        key, equals, value = word.partition("=")
        if key == "run_dir":
            continue
        if equals and "/" in value and not value.startswith("["):
            value = "DIR" if key.endswith(("root", "dir")) else f"FILE{Path(value).suffix}"
        words.append(f"{key}{equals}{value}")
    return " ".join(words)


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of run folders")
    parser.add_argument("--out", type=Path, help="markdown file; printed if not given")
    parser.add_argument("--against", default="ddpg", help="agent that others are compared with")
    options = parser.parse_args()
    try:
        text = "# Results\n\n" + tables(read_results(options.folders), options.against)
    except AmcError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        sys.exit(2)
    if options.out is None:
        print(text)
    else:
        atomic_write_text(options.out, text)


if __name__ == "__main__":
    main()
