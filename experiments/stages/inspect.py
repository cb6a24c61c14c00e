"""Stage ``inspect``: the channel groups, what they cost, what cannot be pruned and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amc.cost import macs_cost
from amc.graph import Graph

if TYPE_CHECKING:
    from experiments.run import Run


def run(run: Run) -> dict[str, Any]:
    """Print a table of the network; no trained weights are needed."""
    graph = run.graph
    macs = macs_cost(graph)
    dense = macs(graph.dense_widths)
    minimum = macs(run.space.minimum) / dense
    rows = [_row(graph, index, dense) for index in range(len(graph.groups))]
    print(f"{'channel group':<40} {'width':>6} {'choices':>8} {'MACs':>7}  layers")
    for row, choices in zip(rows, run.space.choices, strict=True):
        layers = (
            f"{len(row['producers'])} made by, {len(row['followers'])} through, {len(row['readers'])} read by"
        )
        print(f"{row['name']:<40} {row['width']:>6} {len(choices):>8} {row['macs_share']:>7.1%}  {layers}")
    for item in graph.unprunable:
        print(f"{item.name:<40} {item.width:>6} not pruned: {item.reason}")
    print(f"dense {dense / 1e6:.2f}M MACs; smallest allowed network keeps {minimum:.4f} of them")
    return {
        "dense_macs": dense,
        "minimum_macs_ratio": minimum,
        "groups": rows,
        "unprunable": [{"name": u.name, "width": u.width, "reason": u.reason} for u in graph.unprunable],
    }


def _row(graph: Graph, index: int, dense: int) -> dict[str, Any]:
    """Describe one group; its share is what the MACs fall by when it loses all its channels."""
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
