"""Stage ``inspect``: the channel groups, what they cost, what cannot be pruned and why."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from amc.budget.budget import rounded_up
from amc.cost.closed_form import macs_cost
from amc.graph.groups import Graph
from experiments.config.budgets import asked_budgets

if TYPE_CHECKING:
    from experiments.run.run import Run

WIDTH = 110
"""Columns of the printed page."""


def run(run: Run) -> dict[str, Any]:
    """Print what can be pruned; no trained weights are needed."""
    graph = run.problem.graph
    macs = macs_cost(graph)
    dense = macs(graph.dense_widths)
    rows = [_row(graph, index, dense) for index in range(len(graph.groups))]
    reach = 1 - macs([0] * len(graph.groups)) / dense
    minimum = macs(run.space.minimum) / dense
    untrainable, size = run.problem.proof.untrainable, _size(run)
    _print_groups(rows, run.space.choices)
    _print_unprunable(graph)
    print(f"\n{len(rows)} groups; {reach:.1%} of the MACs are in layers that lie on some of them")
    if graph.other_macs:
        print(f"{graph.other_macs / dense:.1%} of the MACs are outside of Conv2d and Linear layers: constant")
    if untrainable is not None:
        print(f"cannot be trained: {untrainable}")
    if not graph.classifies:
        print("no classifier: reward=likeness compares what it returns with the dense network")
    print(f"dense {dense / 1e6:.2f}M MACs; smallest allowed network keeps {rounded_up(minimum)} of them")
    if size:
        _print_size(size, run.config.quantize.method)
    return {
        **({"size": size} if size else {}),
        "dense_macs": dense,
        "other_macs": graph.other_macs,
        "prunable_macs_share": reach,
        "minimum_macs_ratio": minimum,
        "classifies": graph.classifies,
        "exactness": run.problem.proof.difference,
        "untrainable": untrainable,
        "groups": rows,
        "unprunable": [{"name": u.name, "width": u.width, "reason": u.reason} for u in graph.unprunable],
    }


def _print_groups(rows: Sequence[dict[str, Any]], choices: Sequence[Sequence[int]]) -> None:
    """Print a line for each group, with its layers below."""
    print(f"{'channel group':<40} {'width':>6} {'choices':>8} {'MACs':>7}")
    for row, own in zip(rows, choices, strict=True):
        print(f"{row['name']:<40} {row['width']:>6} {len(own):>8} {row['macs_share']:>7.1%}")
        for what, layers in _coupled(row):
            print("\n".join(wrap(f"{what} {', '.join(layers)}", WIDTH, **_INDENT)))
        if len(own) == 1:
            print("    stays whole: budget.round_to and budget.min_preserve_ratio leave only its full width")
    if (total := sum(row["macs_share"] for row in rows)) > 1:
        print(
            "MACs: what leaving out the whole group saves; a layer between two groups counts in both, so the "
            f"column adds up to {total:.0%}"
        )


def _print_unprunable(graph: Graph) -> None:
    if graph.unprunable:
        print(f"\n{'left whole':<40} {'width':>6}  why")
    for item in graph.unprunable:
        print(f"{item.name:<40} {item.width:>6}  {item.reason}")


def _print_size(size: dict[str, float], method: str) -> None:
    stored, floats, least = size["stored"] / 1024, size["float32"] / 1024, size["minimum_size_ratio"]
    print(
        f"dense {floats:.1f} KiB in float32, {stored:.1f} KiB with quantize.method={method}; the smallest "
        f"allowed network keeps {rounded_up(least)} of the former"
    )


def _size(run: Run) -> dict[str, float]:
    """Return bytes of the weights of the dense network; empty without a budget of them."""
    if not any("size" in ratios for ratios in asked_budgets(run.config.budget)):
        return {}
    cost, floats = run.problem.size, run.problem.float_size
    return {
        "float32": floats / 8,
        "stored": cost(run.problem.graph.dense_widths) / 8,
        "minimum_size_ratio": cost(run.space.minimum) / floats,
    }


_INDENT: dict[str, Any] = {
    "initial_indent": "    ",
    "subsequent_indent": " " * 8,
    "break_long_words": False,
    "break_on_hyphens": False,
}


def _coupled(row: dict[str, Any]) -> list[tuple[str, Sequence[str]]]:
    """Return a group's layers by kind, for printing; a single producer is left out, as it names the group."""
    kinds = [("through", row["followers"]), ("read by", row["readers"])]
    if len(row["producers"]) > 1:
        kinds.insert(0, ("made by", row["producers"]))
    return [(what, layers) for what, layers in kinds if layers]


def _row(graph: Graph, index: int, dense: int) -> dict[str, Any]:
    """Describe one group; ``macs_share`` is the share of the MACs that removing the whole group saves."""
    group = graph.groups[index]
    without = list(graph.dense_widths)
    without[index] = 0
    return {
        "name": group.name,
        "width": group.width,
        "producers": list(group.producers),
        "followers": list(group.followers),
        "readers": list(group.readers),
        "macs_share": 1 - macs_cost(graph)(without) / dense,
    }
