"""The results of stage ``sparsify``: read from folders and records, and a section of the tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc.errors import FileError
from amc.files import atomic_write_text
from amc.reading import read_json, read_lines
from experiments.report.text import markdown
from experiments.reproduce.commands import agent_of, recipe_label, shown_recipe, with_all_stages
from experiments.reproduce.origins import command_lines
from experiments.reproduce.problem import recipe_of_weights, searches_of_weights
from experiments.reproduce.records import Measured, check_alike, kept_provenance
from experiments.run.folder import RunFolder
from experiments.run.provenance import SHAPE
from experiments.statistics import mean_text

HEAD = (
    "recipe", "agent", "seeds", "weights left", "on search_val", "before fine-tuning", "after fine-tuning",
)  # fmt: skip
_AGAIN = "run stages=[sparsify] again"
COLUMNS = ("top1_search", "top1_pruned", "top1_finetuned")
_ROUND = {
    "density": float,
    "target?": float,
    **dict.fromkeys((f"{column}?" for column in COLUMNS), (float, None)),
}
_FACTS = {"dense": {"top1": float}, "rounds": [_ROUND]}
_ABOUT = {
    "model": {"name": str, "num_classes?": int, "input_shape?": [int]},
    "agent": str,
    "seed": int,
}
_RECORD = {
    **dict.fromkeys(("model", "data", "agent"), str),
    "seed": int,
    "num_classes?": (int, None),
    "input_shape?": ([int], None),
    "dense": float,
    "rounds": [_ROUND],
    "provenance": {"command": str, "stage_commits": {...: (str, None)}},
}
_SHAPE_OF_MODEL = ("num_classes", "input_shape")
Group = tuple[str, str, tuple[float, ...]]
"""Recipe, agent and densities of a row."""
_RECORDS = Path("sparse") / "runs.jsonl"
"""The file of runs within a folder of records: one line of JSON for each."""


@dataclass(frozen=True)
class SparseResult:
    """The results of one run.

    Attributes:
        job: Network and data.
        agent, seed: The agent that searched, and its seed.
        dense: Top-1 of the dense network on the test images, in percent.
        rounds: The record of each round, see stage ``sparsify``.
        provenance: Commit, command, device and versions.
        model: ``num_classes`` and ``input_shape`` of the network, as far as they are known.
        place: Run folder, or file and line of the record.
    """

    job: tuple[str, str]
    agent: str
    seed: int
    dense: float
    rounds: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    @property
    def command(self) -> str:
        """The command that ran the stage, maybe an earlier one than the last of its folder."""
        return _command(self.provenance)

    @property
    def recipe(self) -> str:
        """How its networks were searched and trained, see ``recipe_of_weights``."""
        return recipe_of_weights(self.command)

    @property
    def densities(self) -> tuple[float, ...]:
        """The share of the weights that each round was asked for; of older runs about that which is left."""
        return tuple(own["target"] if "target" in own else round(own["density"], 2) for own in self.rounds)


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
        agent, seed = agent_of(about["agent"], _command(provenance)), about["seed"]
        model = {name: about["model"].get(name) for name in _SHAPE_OF_MODEL}
        return SparseResult(job, agent, seed, dense, facts["rounds"], provenance, model, str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{folder} is no finished run of stage sparsify ({error!r})") from error


def _command(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("sparsified_by") or provenance["command"])


def read_sparse_records(folder: Path) -> list[SparseResult]:
    """Read the runs that `write_sparse` has kept in a folder of records.

    Raises:
        FileError: A line is not a record.
    """
    path = folder / _RECORDS
    lines = read_lines(path, _RECORD, "restore the file") if path.exists() else []
    return [
        SparseResult(
            (own["model"], own["data"]),
            own["agent"],
            own["seed"],
            own["dense"],
            own["rounds"],
            own["provenance"],
            {name: own.get(name) for name in _SHAPE_OF_MODEL},
            f"{path} line {number}",
        )
        for number, own in enumerate(lines, start=1)
    ]


def write_sparse(results: Sequence[SparseResult], folder: Path) -> None:
    """Keep runs in a folder of records, without paths of this machine."""
    if not results:
        return
    kept = ("target", "density", *COLUMNS)
    lines = [
        {
            **dict(zip(("model", "data"), own.job, strict=True)),
            "agent": own.agent,
            "seed": own.seed,
            **own.model,
            "dense": own.dense,
            "rounds": [{name: each[name] for name in kept if name in each} for each in own.rounds],
            "provenance": kept_provenance(own.provenance),
        }
        for own in results
    ]
    (folder / _RECORDS).parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / _RECORDS, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def merged_sparse(known: Iterable[SparseResult], new: Iterable[SparseResult]) -> list[SparseResult]:
    """Return runs in a fixed order; the last of the same job, recipe, agent, densities and seed counts.

    Raises:
        AmcError: Two of one table are of different data sets, or of one seed and different dense networks.
    """
    results = [*known, *new]
    check_alike(map(_measured, results))
    found = {(own.job, *_group(own), own.seed): own for own in results}
    return [found[key] for key in sorted(found)]


def _measured(own: SparseResult) -> Measured:
    about = [word for word in searches_of_weights(own.command) if word.startswith(("model.", "data."))]
    table = ", ".join([*own.job, "single weights", *about])
    return Measured(table, own.seed, own.dense, own.command, own.model, None, own.place)


def _group(own: SparseResult) -> Group:
    return own.recipe, own.agent, own.densities


def sparse_tables(results: Sequence[SparseResult]) -> str:
    """Return a section for every network, with a row for every recipe, agent, list of densities and round."""
    jobs: dict[tuple[str, str], list[SparseResult]] = defaultdict(list)
    for result in results:
        jobs[result.job].append(result)
    return "\n".join(_section(job, own) for job, own in jobs.items())


def _section(job: tuple[str, str], results: Sequence[SparseResult]) -> str:
    groups: dict[Group, list[SparseResult]] = defaultdict(list)
    for result in results:
        groups[_group(result)].append(result)
    recipes = sorted({recipe for recipe, _, _ in groups})
    labels = {recipe: recipe_label(place) for place, recipe in enumerate(recipes)}
    dense = sorted({f"{result.dense:.2f}" for result in results})
    rows = [row for (recipe, name, _), own in groups.items() for row in _rows(labels[recipe], name, own)]
    return "\n".join(
        [
            f"## {', '.join(job)}, single weights (fine-grained)",
            "",
            f"Dense network: {' or '.join(dense)}% top-1 on the test images. Each round makes weights of the",
            "last one zero; before fine-tuning nothing else is changed. Accuracies in percent: the mean over",
            "the seeds with its 95% t interval. Rows of one recipe were searched and trained alike.",
            "",
            markdown([HEAD, *rows]),
            "",
            *(f"- recipe {label}: {shown_recipe(recipe)}" for recipe, label in labels.items()),
            *(
                line
                for (recipe, name, _), own in groups.items()
                for line in command_lines(
                    f"recipe {labels[recipe]}, {name}",
                    [{**result.provenance, "command": result.command} for result in own],
                )
            ),
            "",
        ]
    )


def _rows(label: str, name: str, results: Sequence[SparseResult]) -> list[list[str]]:
    """Return a row for every round, over the seeds of one recipe and agent at the same densities."""
    seeds = ", ".join(str(result.seed) for result in results)
    rows = []
    for rounds in zip(*(result.rounds for result in results), strict=True):
        left = f"{100 * max(found['density'] for found in rounds):.2f}%"
        found = [[own[column] for own in rounds if own.get(column) is not None] for column in COLUMNS]
        rows.append([label, name, seeds, left, *map(mean_text, found)])
    return rows
