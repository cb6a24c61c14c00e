"""What runs of stage ``sparsify`` have measured, as a section of the results."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import AmcError
from experiments.reproduce.runs import with_all_stages
from experiments.statistics import bootstrap

COLUMNS = ("top1_search", "top1_pruned", "top1_finetuned")

Origin = Callable[[str, Sequence[Mapping[str, Any]]], str]
"""An agent and the provenance of its runs -> the line that says where its figures come from."""


@dataclass(frozen=True)
class SparseResult:
    """One run.

    Attributes:
        job: network and data.
        agent, seed: who searched.
        dense: top-1 of the dense network on the test images.
        rounds: what each round found, see stage ``sparsify``.
        provenance: commit, command, device and versions.
    """

    job: tuple[str, str]
    agent: str
    seed: int
    dense: float
    rounds: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]


def read_sparse(folders: Iterable[Path]) -> list[SparseResult]:
    """Read all runs below ``folders`` that have made weights zero, in the order of their paths.

    Raises:
        AmcError: a record is damaged.
    """
    places = {path.parent.parent for folder in folders for path in folder.rglob("stages/sparsify.json")}
    return [_read(place) for place in sorted(places)]


def _read(folder: Path) -> SparseResult:
    try:
        facts = json.loads((folder / "stages/sparsify.json").read_text())
        about = json.loads((folder / "sparsity.json").read_text())
        provenance = with_all_stages(json.loads((folder / "provenance.json").read_text()), folder)
        job = (str(about["model"]["name"]), str(provenance["data"]["name"]))
        dense = float(facts["dense"]["top1"])
        return SparseResult(job, about["agent"], about["seed"], dense, facts["rounds"], provenance)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AmcError(f"{folder} is no finished run of stage sparsify ({error!r})") from error


def sparse_tables(results: Sequence[SparseResult], origin: Origin) -> str:
    """Return a section for every network, a row for every agent and round."""
    jobs: dict[tuple[str, str], list[SparseResult]] = defaultdict(list)
    for result in results:
        jobs[result.job].append(result)
    return "\n".join(_section(job, own, origin) for job, own in jobs.items())


def _section(job: tuple[str, str], results: Sequence[SparseResult], origin: Origin) -> str:
    agents: dict[str, list[SparseResult]] = defaultdict(list)
    for result in results:
        agents[result.agent].append(result)
    dense = sorted({f"{result.dense:.2f}" for result in results})
    return "\n".join(
        [
            f"## {', '.join(job)}, single weights (fine-grained)",
            "",
            f"Dense network: {' or '.join(dense)}% top-1 on the test images. Each round makes weights of the",
            "last one zero; before fine-tuning nothing else is changed. Accuracies in percent, as above.",
            "",
            "| agent | seeds | weights left | on search_val | before fine-tuning | after fine-tuning |",
            "|---|---|---|---|---|---|",
            *(line for name, own in agents.items() for line in _rows(name, own)),
            "",
            *(origin(name, [result.provenance for result in own]) for name, own in agents.items()),
            "",
        ]
    )


def _rows(name: str, results: Sequence[SparseResult]) -> list[str]:
    seeds = ", ".join(str(result.seed) for result in results)
    lines = []
    for rounds in zip(*(result.rounds for result in results), strict=True):
        left = f"{100 * max(found['density'] for found in rounds):.2f}%"
        cells = [_text([found[column] for found in rounds if column in found]) for column in COLUMNS]
        lines.append(f"| {' | '.join([name, seeds, left, *cells])} |")
    return lines


def _text(values: Sequence[float]) -> str:
    if not values:
        return ""
    return str(bootstrap(values)) if len(values) > 1 else f"{values[0]:.2f}"
