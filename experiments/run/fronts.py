"""The Pareto fronts of a search, cost against score, and strategy files for points on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.files import atomic_write_json
from amc.strategy import Strategy
from experiments.pareto import evenly, pareto_front
from experiments.run.folder import RunFolder

if TYPE_CHECKING:
    from experiments.run.run import Run

Point = Mapping[str, Any]
"""A line of ``search.jsonl``."""

VERSION = 1
COSTS = {"macs": "macs", "params": "params", "size": "size_bytes", "latency": "latency_ms"}
"""Name of a cost -> its field in a point.

A point has a latency only if the run was profiled, and a size only if its budget limits it (``sized``).
"""
_ALWAYS = ("macs", "params")
SCORES = ("return", "top1")
FILES = 12
"""Largest number of strategy files for one cost."""
_FIELDS = (
    "folder", "episode", "return", "top1", "agreement", "likeness", "macs", "params", "macs_ratio",
    "params_ratio", "size_bytes", "size_ratio", "latency_ms", "widths",
)  # fmt: skip


def fronts(points: Sequence[Point]) -> dict[str, Any]:
    """Return for each cost the front of each score: ``{"macs": {"return": [point, ...], ...}, ...}``.

    Episodes that exceed the budget on purpose count as well, because the front compares networks at any
    cost. The earliest of equal points is taken. A score that is ``null`` in all points, such as the accuracy
    of networks without logits, gives an empty front.
    """
    return {
        cost: {
            score: [
                {name: point[name] for name in _FIELDS if name in point}
                for point in pareto_front(_with(points, score), itemgetter(field), itemgetter(score))
            ]
            for score in SCORES
        }
        for cost, field in COSTS.items()
        if cost in _ALWAYS or (points and all(field in point for point in points))
    }


def sized(run: Run, points: Sequence[Point]) -> list[Point]:
    """Return the points of a run's search, with the bytes of the weights if the budget limits them.

    Raises:
        AmcError: the search was for other channel groups than the run has now.
    """
    run.records.require_groups(points)
    if all(limit.kind != "size" for limit in run.budget.limits):
        return list(points)
    size, whole = run.problem.size, run.problem.original.float_size
    bits = [int(size(point["widths"])) for point in points]
    return [
        {**point, "size_bytes": own // 8, "size_ratio": own / whole}
        for point, own in zip(points, bits, strict=True)
    ]


def _with(points: Sequence[Point], score: str) -> list[Point]:
    return [point for point in points if point[score] is not None]


def write_strategies(
    folder: Path, found: Mapping[str, Any], strategy_of: Callable[[Point], Strategy]
) -> dict[str, Any]:
    """Write ``pareto/macs_00.json`` and so on, cost ascending.

    The points are taken evenly from the fronts of the return; files of an earlier front are removed.

    Returns:
        the fronts, with ``strategy`` (the file) in every point that has one.
    """
    named = {cost: dict(scores) for cost, scores in found.items()}
    place = RunFolder(folder).pareto_strategies
    place.mkdir(exist_ok=True)
    old = {path for cost in COSTS for path in place.glob(f"{cost}_*.json")}
    for cost, scores in found.items():
        files: dict[int, str] = {}
        for number, point in enumerate(evenly(scores["return"], FILES)):
            path = place / f"{cost}_{number:02}.json"
            strategy_of(point).save(path)
            files[id(point)] = f"{place.name}/{path.name}"
            old.discard(path)
        named[cost]["return"] = [
            {**point, "strategy": files[id(point)]} if id(point) in files else point
            for point in scores["return"]
        ]
    for path in old:
        path.unlink()
    return named


def strategy_at(run: Run, point: Point) -> Strategy:
    """Return the strategy of one point of a run's search, one of ``sized``."""
    search = run.records.read("search") or {}
    return run.make_strategy(
        tuple(point["widths"]),
        agent=search.get("agent"),
        reward=search.get("reward"),
        value=point["return"],
        episode=point["episode"],
        search_val_top1=point["top1"],
    )


def write_fronts(
    folder: Path, points: Sequence[Point], strategy_of: Callable[[Point], Strategy]
) -> dict[str, Any]:
    """Write ``pareto.json`` and its strategy files; return the fronts."""
    found = write_strategies(folder, fronts(points), strategy_of)
    atomic_write_json(RunFolder(folder).pareto, {"version": VERSION, **found})
    return found
