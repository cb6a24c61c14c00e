"""Records of runs whose folders may be gone: one line of JSON for each run, one file for each table.

Run folders are large and live on the machine that made them. A record holds the data that tables and
figures are drawn from, so that results of many machines come together and can be drawn again from the
repository alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import AmcError, FileError
from amc.files import atomic_write_text
from amc.reading import read_lines
from amc.strategy import Strategy
from experiments.reproduce.commands import COMMANDS, setting_of, short_commit, shown_command
from experiments.reproduce.runs import SAME_DENSE, Result, complete

VERSION = 1
_SHAPE = {
    "job": [str],
    "strategy": {},
    "facts": {"evaluate": {}},
    "provenance": {"command": str},
    "episodes": {},
}
_STAGES = ("search", "evaluate", "correlate")
_PROVENANCE = (*(*COMMANDS, "commit", "stage_commits", "seed", "data", "device", "python", "versions"),)
_EPISODE = ("phase", "return", "top1", "macs_ratio", "stopped_after")


def read_records(folder: Path) -> list[Result]:
    """Read all records in a folder, and none if it does not exist.

    Raises:
        FileError: A line is not a record.
    """
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, record in enumerate(read_lines(path, _SHAPE, "restore the file"), start=1):
            try:
                results.append(_result(record, path.stem, f"{path} line {number}"))
            except (ValueError, KeyError, TypeError, AttributeError, AmcError) as error:
                raise FileError(f"{path} line {number} is no record of a run ({error!r})") from error
    return results


def write_records(results: Iterable[Result], folder: Path) -> None:
    """Write one file for every table, ordered by agent and seed."""
    tables: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        tables[result.slug].append(result)
    folder.mkdir(parents=True, exist_ok=True)
    for slug, own in tables.items():
        lines = [json.dumps(_record(result), allow_nan=False) for result in sorted(own, key=_key)]
        atomic_write_text(folder / f"{slug}.jsonl", "\n".join([*lines, ""]))


def merged(records: Iterable[Result], results: Iterable[Result], warn: Callable[[str], None]) -> list[Result]:
    """Return records and new results together, ordered by table, agent and seed.

    A new result replaces the record of the same table, agent, episodes, seeds (of the run and of the search
    that found its widths) and recipe (one that was not fine-tuned is none of a recipe), unless it has only
    evaluated the strategy again, without a search. ``warn`` gets a line if the new result has found another
    network.

    Raises:
        AmcError: results of one table are of different data sets, or those of one seed of different dense
            networks.
    """
    records, results = list(records), list(results)
    check_alike(map(_measured, [*records, *results]))
    found = {_key(record): record for record in records}
    for result in results:
        known = found.get(_key(result))
        if known is not None and not result.episodes and known.episodes:
            continue
        if known is not None and known.strategy.groups != result.strategy.groups:
            warn(
                f"{result.agent} seed {result.seed} of {result.slug} has found another network than the run "
                f"that it replaces: {_origin(result)} after {_origin(known)}"
            )
        found[_key(result)] = result
    return [found[key] for key in sorted(found)]


@dataclass(frozen=True)
class Measured:
    """What tells whether a result may stand in a table beside others.

    Attributes:
        table: name of the table.
        seed: of the run.
        dense: top-1 of its dense network in percent; None where it was not judged.
        command: of the run.
        model: ``num_classes`` and ``input_shape`` of the network, as far as they are known.
        images: number of test images; None where it is not known.
        place: run folder, or file and line of the record.
    """

    table: str
    seed: int
    dense: float | None
    command: str
    model: Mapping[str, Any]
    images: int | None
    place: str


def check_alike(results: Iterable[Measured]) -> None:
    """Refuse a table with results on several data sets, or with one seed's on several dense networks.

    The name of a data set, such as ``imagefolder``, may be the same. Jobs that have each trained their own
    dense network differ by chance where training does not repeat, as on a GPU: one has to be given.

    Raises:
        AmcError: two differ.
    """
    results = list(results)
    _check_data(results)
    _check_dense(results)


def _check_data(results: Iterable[Measured]) -> None:
    known: dict[tuple[str, str], tuple[str, Measured]] = {}
    for result in results:
        for what, value in _about_data(result):
            before, first = known.setdefault((result.table, what), (value, result))
            if value != before:
                raise AmcError(
                    f"{result.place} has {what.format(value)}, {first.place} {before}: expected the same in "
                    f"one table ({result.table}); probably another data set: use another --out, or remove "
                    "the record"
                )


def _about_data(result: Measured) -> Iterator[tuple[str, str]]:
    """Yield what tells a result's data set from another, as far as it is known."""
    shape = result.model.get("input_shape")
    size = "x".join(map(str, shape)) if shape is not None else None
    found = (
        ("{} test images", result.images),
        ("{} classes", result.model.get("num_classes")),
        ("images of {}", size),
    )
    yield from ((what, str(value)) for what, value in found if value is not None)


def _check_dense(results: Iterable[Measured]) -> None:
    seeds: dict[tuple[str, int], list[tuple[float, Measured]]] = defaultdict(list)
    for result in results:
        if result.dense is not None:
            seeds[result.table, result.seed].append((result.dense, result))
    for own in seeds.values():
        for given, known in [each for each in own if _was_given_dense(each[1].command)][:1]:
            for dense, result in own:
                if abs(dense - given) >= SAME_DENSE:
                    raise AmcError(
                        f"{result.place} has a dense network of {dense:.2f}%, {known.place} one of "
                        f"{given:.2f}%, expected the same in one table ({result.table}, seed {result.seed}); "
                        "probably another model.checkpoint: use another --out, or remove the record"
                    )


def _was_given_dense(command: str) -> bool:
    pretrained = setting_of(command, "model.pretrained") in ("true", "True")
    return pretrained or setting_of(command, "model.checkpoint") not in (None, "null")


def _measured(result: Result) -> Measured:
    images = (result.facts.get("evaluate", {}).get("dense") or {}).get("images")
    command, model = str(result.provenance["command"]), result.strategy.model
    return Measured(result.slug, result.seed, result.top1("dense"), command, model, images, result.place)


def _origin(result: Result) -> str:
    commit = short_commit(result.provenance["commit"])
    return f"{shown_command(str(result.provenance['command']))} (commit {commit})"


def _key(result: Result) -> tuple[str, str, int, int, int, str, bool]:
    tuned = result.top1("finetuned") is not None  # by the experiment's own settings the recipe is empty
    searched = result.agent, result.asked_episodes, result.widths_seed
    return result.slug, *searched, result.seed, result.recipe, tuned


def _record(result: Result) -> dict[str, Any]:
    facts = {name: dict(result.facts[name]) for name in _STAGES if name in result.facts}
    return {
        "_version": VERSION,
        "job": list(result.job),
        "strategy": result.strategy.to_json(),
        "facts": facts,
        "provenance": kept_provenance(result.provenance),
        "episodes": _columns(result.episodes),
    }


def kept_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded of a provenance, without the paths of one machine."""
    kept = {name: provenance[name] for name in _PROVENANCE if name in provenance}
    for name in kept.keys() & {*COMMANDS}:
        kept[name] = shown_command(str(kept[name]))
    return kept


def _result(record: Mapping[str, Any], slug: str, place: str) -> Result:
    if record["_version"] != VERSION:
        raise FileError(f"_version is {record['_version']!r}; this release reads {VERSION}")
    columns = record["episodes"]
    rows = zip(*(columns[name] for name in _EPISODE), strict=True)
    return complete(
        Result(
            tuple(record["job"]),
            slug,
            Strategy.from_json(record["strategy"]),
            record["facts"],
            record["provenance"],
            [dict(zip(_EPISODE, row, strict=True)) for row in rows],
            place,
        )
    )


def _columns(episodes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [episode[name] for episode in episodes] for name in _EPISODE}
