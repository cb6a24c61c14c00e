"""The results of stage ``sparsify``, as a section of the tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import FileError
from amc.reading import read_json
from experiments.report.text import markdown
from experiments.reproduce.commands import agent_of, with_all_stages
from experiments.reproduce.origins import command_lines
from experiments.run.folder import RunFolder
from experiments.run.provenance import SHAPE
from experiments.statistics import mean_text

HEAD = ("agent", "seeds", "weights left", "on search_val", "before fine-tuning", "after fine-tuning")
_AGAIN = "run stages=[sparsify] again"
_FACTS = {
    "dense": {"top1": float},
    "rounds": [{"density": float, **dict.fromkeys(("top1_search?", "top1_pruned?"), (float, None))}],
}
_ABOUT = {"model": {"name": str}, "agent": str, "seed": int}
COLUMNS = ("top1_search", "top1_pruned", "top1_finetuned")


@dataclass(frozen=True)
class SparseResult:
    """The results of one run.

    Attributes:
        job: Network and data.
        agent, seed: The agent that searched, and its seed.
        dense: Top-1 of the dense network on the test images, in percent.
        rounds: The record of each round, see stage ``sparsify``.
        provenance: Commit, command, device and versions.
    """

    job: tuple[str, str]
    agent: str
    seed: int
    dense: float
    rounds: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]


def read_sparse(folders: Iterable[Path]) -> list[SparseResult]:
    """Read all runs of stage ``sparsify`` below ``folders``, in the order of their paths.

    Raises:
        FileError: A record is damaged.
    """
    places = {path.parent.parent for folder in folders for path in folder.rglob("stages/sparsify.json")}
    return [_read(place) for place in sorted(places)]


def _read(folder: Path) -> SparseResult:
    files = RunFolder(folder)
    try:
        facts = read_json(files.record_of("sparsify"), _FACTS, _AGAIN)
        about = read_json(files.sparsity.with_suffix(".json"), _ABOUT, _AGAIN)
        provenance = with_all_stages(read_json(files.provenance, SHAPE, _AGAIN), folder)
        job = (str(about["model"]["name"]), str(provenance["data"]["name"]))
        dense = float(facts["dense"]["top1"])
        agent, seed = agent_of(about["agent"], str(provenance["command"])), about["seed"]
        return SparseResult(job, agent, seed, dense, facts["rounds"], provenance)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{folder} is no finished run of stage sparsify ({error!r})") from error


def sparse_tables(results: Sequence[SparseResult]) -> str:
    """Return a section for every network, with a row for every agent and round."""
    jobs: dict[tuple[str, str], list[SparseResult]] = defaultdict(list)
    for result in results:
        jobs[result.job].append(result)
    return "\n".join(_section(job, own) for job, own in jobs.items())


def _section(job: tuple[str, str], results: Sequence[SparseResult]) -> str:
    agents: dict[str, list[SparseResult]] = defaultdict(list)
    for result in results:
        agents[result.agent].append(result)
    dense = sorted({f"{result.dense:.2f}" for result in results})
    return "\n".join(
        [
            f"## {', '.join(job)}, single weights (fine-grained)",
            "",
            f"Dense network: {' or '.join(dense)}% top-1 on the test images. Each round makes weights of the",
            "last one zero; before fine-tuning nothing else is changed. Accuracies in percent: the mean over",
            "the seeds with its 95% t interval.",
            "",
            markdown([HEAD, *(row for name, own in agents.items() for row in _rows(name, own))]),
            "",
            *(
                line
                for name, own in agents.items()
                for line in command_lines(name, [result.provenance for result in own])
            ),
            "",
        ]
    )


def _rows(name: str, results: Sequence[SparseResult]) -> list[list[str]]:
    """Return a row for every round, over the seeds of one agent."""
    seeds = ", ".join(str(result.seed) for result in results)
    rows = []
    for rounds in zip(*(result.rounds for result in results), strict=True):
        left = f"{100 * max(found['density'] for found in rounds):.2f}%"
        found = [[own[column] for own in rounds if own.get(column) is not None] for column in COLUMNS]
        rows.append([name, seeds, left, *map(mean_text, found)])
    return rows
