"""Multiply-adds that no width changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from amc.cost.closed_form import macs_cost
from amc.cost.counted import count_macs
from amc.cutting.slicing import SlicePlan, slice_model
from amc.errors import AmcError
from amc.graph.groups import Graph


def with_other_macs(graph: Graph, model: nn.Module) -> Graph:
    """Return the graph with the multiply-adds outside of its layers, such as attention, as a constant.

    A count that no width lowers, all groups cut to a single channel, depends on none.

    Raises:
        AmcError: they depend on the widths, so that the closed form would be wrong; names the groups.
    """
    dense, cost = graph.dense_widths, macs_cost(graph)
    outside = count_macs(model, graph.input_shape) - cost(dense)
    if outside == 0:
        return graph
    name = type(model).__name__
    if outside < 0:
        raise AmcError(f"{name}: fvcore counts {-outside} MACs fewer than its Conv2d and Linear layers have")
    plan = SlicePlan(graph, model)

    def differs(widths: Sequence[int]) -> bool:
        cut = slice_model(model, plan.cut(widths))
        try:
            return count_macs(cut, graph.input_shape) - cost(widths) != outside
        except AmcError:  # it does not even run any more: what is outside reads the channels
            return True

    if not differs([1] * len(dense)):
        return replace(graph, other_macs=outside)
    alone = [[1 if i == j else width for j, width in enumerate(dense)] for i in range(len(dense))]
    groups = [group.name for group, widths in zip(graph.groups, alone, strict=True) if differs(widths)]
    raise AmcError(
        f"{name} computes {outside} MACs outside of Conv2d and Linear layers (attention, functional "
        f"convolutions) that change with the widths of {', '.join(groups) or 'several groups'}, which the "
        f"budget would not see: compressor.exclude=[{','.join(groups)}] leaves them whole"
    )
