"""Multiply-adds outside of convolution and linear layers, which no width changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from amc.cost.closed_form import macs_cost
from amc.cost.counted import count_macs
from amc.cutting.slicing import SlicePlan, slice_model
from amc.errors import AmcError, NotPrunableError
from amc.graph.groups import Graph, leave_whole

_UNSEEN = "its width changes multiply-adds outside of Conv2d and Linear layers, which a budget would not see"


def with_other_macs(graph: Graph, model: nn.Module) -> Graph:
    """Return the graph with the multiply-adds outside of its layers, such as attention, as a constant.

    They are counted with all groups at one channel, too: a count that does not change depends on no width.
    Groups on which it depends are left whole, as a budget would not see what they cost.

    Raises:
        NotPrunableError: fvcore cannot count the network, or no group is left.
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
    if not _differs(graph, model, graph.group_names, outside):
        return replace(graph, other_macs=outside)
    groups = [group for group in graph.group_names if _differs(graph, model, [group], outside)]
    fewer = leave_whole(graph, dict.fromkeys(groups, _UNSEEN))
    if not groups or not fewer.groups:
        raise NotPrunableError(
            f"{name} computes {outside} MACs outside of Conv2d and Linear layers (attention, functional "
            f"convolutions) that change with the widths of {', '.join(groups) or 'several groups'}, which a "
            "budget would not see; no channel group is left"
        )
    return with_other_macs(fewer, model)


def _differs(graph: Graph, model: nn.Module, narrow: Sequence[str], outside: int) -> bool:
    """Return whether the multiply-adds outside of the layers change when some groups have one channel."""
    widths = [1 if group.name in narrow else group.width for group in graph.groups]
    cut = slice_model(model, SlicePlan(graph, model).cut(widths))
    try:
        return count_macs(cut, graph.input_shape) - macs_cost(graph)(widths) != outside
    except AmcError:  # it does not run any more: an operation outside of the layers needs the channels
        return True
