"""Multiply-adds outside of convolution and linear layers, which no width changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from amc.cost.closed_form import macs_cost
from amc.cost.counted import count_macs
from amc.cutting.slicing import SlicePlan, slice_model
from amc.errors import AmcError, NotPrunableError
from amc.graph.groups import Graph


def with_other_macs(graph: Graph, model: nn.Module) -> Graph:
    """Return the graph with the multiply-adds outside of its layers, such as attention, as a constant.

    They are counted with all groups at one channel, too: a count that does not change depends on no width.

    Raises:
        NotPrunableError: fvcore cannot count the network, or the multiply-adds depend on the widths of some
            groups, which are named: the closed form would be wrong.
    """
    dense, cost = graph.dense_widths, macs_cost(graph)
    outside = count_macs(model, graph.input_shape) - cost(dense)
    if outside == 0:
        return graph
    name = type(model).__name__
    if outside < 0:
        raise NotPrunableError(
            f"{name}: fvcore counts {-outside} MACs fewer than its Conv2d and Linear layers have"
        )
    plan = SlicePlan(graph, model)

    def differs(widths: Sequence[int]) -> bool:
        cut = slice_model(model, plan.cut(widths))
        try:
            return count_macs(cut, graph.input_shape) - cost(widths) != outside
        except AmcError:  # it does not run any more: an operation outside of the layers needs the channels
            return True

    if not differs([1] * len(dense)):
        return replace(graph, other_macs=outside)
    alone = [[1 if i == j else width for j, width in enumerate(dense)] for i in range(len(dense))]
    groups = [group.name for group, widths in zip(graph.groups, alone, strict=True) if differs(widths)]
    raise NotPrunableError(
        f"{name} computes {outside} MACs outside of Conv2d and Linear layers (attention, functional "
        f"convolutions) that change with the widths of {', '.join(groups) or 'several groups'}, which the "
        f"budget would not see: compressor.exclude=[{','.join(groups)}] leaves them whole"
    )
