"""Slicing: the kept rows and columns of every tensor, taken without tracing the network again."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from amc.cutting.modules import Keep, _axis_length, set_tensors, sliced_tensors
from amc.graph.groups import Graph
from amc.graph.layers import blank_image
from amc.graph.trace import trace
from amc.models import OptionAShortcut
from amc.models.shortcut import slice_shortcut
from amc.strategy import Strategy

Kept = Mapping[str, Tensor]
"""Group name -> kept channel indices of the group, ascending int64."""


def kept_channels(graph: Graph, orders: Mapping[str, Tensor], widths: Sequence[int]) -> dict[str, Tensor]:
    """Return the channels that stay in every group at ``widths``."""
    return {
        group.name: orders[group.name][:width].sort().values
        for group, width in zip(graph.groups, widths, strict=True)
    }


def first_channels(graph: Graph, widths: Sequence[int]) -> dict[str, Tensor]:
    """Return the first channels of every group: enough to rebuild the shapes of a pruned network."""
    return {group.name: torch.arange(width) for group, width in zip(graph.groups, widths, strict=True)}


class SlicePlan:
    """Which indices of which axis belong to which channel; made once per network.

    Args:
        graph: the traced network.
        model: the dense network, read for the lengths of its axes only.
    """

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._axes: dict[tuple[str, str], tuple[int, list[tuple[str, Tensor]]]] = {}
        for group in graph.groups:
            for slot in group.slots:
                length = _axis_length(modules[slot.module], slot.axis)
                _, parts = self._axes.setdefault((slot.module, slot.axis), (length, []))
                parts.append((group.name, torch.tensor(slot.positions)))

    def keeps(self, kept: Kept) -> dict[str, Keep]:
        """Translate kept channels of groups into kept indices of every module's axes."""
        found: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for (module, axis), (length, parts) in self._axes.items():
            mask = torch.ones(length, dtype=torch.bool)
            for group, positions in parts:
                mask[positions.flatten()] = False
                mask[positions[kept[group]].flatten()] = True
            found[module][axis] = mask.nonzero().flatten()
        return {module: Keep(axes.get("in"), axes.get("out")) for module, axes in found.items()}


def slice_model(model: nn.Module, plan: SlicePlan, kept: Kept) -> nn.Module:
    """Return a copy of ``model`` that holds only the kept channels."""
    pruned = copy.deepcopy(model)
    modules = dict(pruned.named_modules())
    for name, keep in plan.keeps(kept).items():
        module = modules[name]
        if isinstance(module, OptionAShortcut):
            slice_shortcut(module, keep.inputs, keep.outputs)
        else:
            set_tensors(module, sliced_tensors(module, keep))
            if isinstance(module, nn.modules.batchnorm._NormBase) and not module.affine:
                module.num_features = len(keep.outputs) if keep.outputs is not None else module.num_features
    return pruned


def shaped(dense: nn.Module, input_shape: Sequence[int], strategy: Strategy) -> nn.Module:
    """Return a copy of ``dense`` with the widths of ``strategy``; which channels stay does not matter."""
    graph = trace(dense, blank_image(dense, input_shape))
    widths = strategy.widths_for(graph.group_names, graph.dense_widths)
    return slice_model(dense, SlicePlan(graph, dense), first_channels(graph, widths))
