"""Slicing: the kept rows and columns of every tensor, taken without tracing the network again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from amc.cutting.modules import Keep, Tensors, cut_tensors, install, slot_length
from amc.graph.groups import Axis, Graph
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.scoring.run import copied
from amc.strategy import Strategy

Kept = Mapping[str, Tensor]
"""Name of a group -> its kept channels: (n,) int64, ascending."""


_SlotAxis = tuple[str, Axis, str | None, int]
"""Module, axis, bare tensor and its dimension of a slot."""


@dataclass(frozen=True)
class Cut:
    """Which channels of a network stay; made once for every candidate.

    Attributes:
        widths: number of kept channels of every group, in forward order.
        kept: the kept channels of every group.
        keeps: the kept indices on the axes of every module that a group lies on.
    """

    widths: tuple[int, ...]
    kept: Kept
    keeps: Mapping[str, Keep]


class SlicePlan:
    """Which indices of which axis belong to which channel; made once for every network.

    Args:
        graph: the traced network.
        model: the dense network, read for the lengths of its axes only.
        orders: name of a group -> (width,) int64 channels, most important first; by default as they come,
            which is enough to rebuild the shapes of a pruned network.
    """

    def __init__(self, graph: Graph, model: nn.Module, orders: Mapping[str, Tensor] | None = None) -> None:
        modules = dict(model.named_modules())
        self._orders = orders or {group.name: torch.arange(group.width) for group in graph.groups}
        self._names = graph.group_names
        self._axes: dict[_SlotAxis, tuple[int, list[tuple[str, Tensor]]]] = {}
        for group in graph.groups:
            for slot in group.slots:
                length = slot_length(modules[slot.module], slot)
                axis = (slot.module, slot.axis, slot.tensor, slot.dim)
                _, parts = self._axes.setdefault(axis, (length, []))
                parts.append((group.name, torch.tensor(slot.positions)))

    def cut(self, widths: Sequence[int]) -> Cut:
        """Return the cut that keeps the most important channels of every group.

        Args:
            widths: channels to keep, one number a group, in forward order.
        """
        return self.cut_to(
            {
                name: self._orders[name][:width].sort().values
                for name, width in zip(self._names, widths, strict=True)
            }
        )

    def cut_to(self, kept: Kept) -> Cut:
        """Return the cut that keeps exactly these channels of every group."""
        widths = tuple(len(kept[name]) for name in self._names)
        return Cut(widths, kept, self._keeps(kept))

    def _keeps(self, kept: Kept) -> dict[str, Keep]:
        found: dict[str, dict[str, Tensor]] = defaultdict(dict)
        bare: dict[str, dict[str, tuple[int, Tensor]]] = defaultdict(dict)
        for (module, axis, tensor, dim), (length, parts) in self._axes.items():
            mask = torch.ones(length, dtype=torch.bool)
            for group, positions in parts:
                mask[positions.flatten()] = False
                mask[positions[kept[group]].flatten()] = True
            if tensor is None:
                found[module][axis] = mask.nonzero().flatten()
            else:
                bare[module][tensor] = (dim, mask.nonzero().flatten())
        return {
            module: Keep(found[module].get("in"), found[module].get("out"), bare.get(module, {}))
            for module in dict.fromkeys(module for module, _, _, _ in self._axes)
        }


def slice_model(model: nn.Module, cut: Cut, tensors: Mapping[str, Tensors] | None = None) -> nn.Module:
    """Return a copy of ``model`` that holds only the kept channels.

    Args:
        tensors: name of a module -> its new tensors, already cut; by default those of ``model``.
    """
    pruned = copied(model)
    modules = dict(pruned.named_modules())
    given = tensors or {}
    for name in dict.fromkeys((*cut.keeps, *given)):
        keep = cut.keeps.get(name, Keep())
        own = given[name] if name in given else cut_tensors(modules[name], keep)
        install(modules[name], own, keep)
    return pruned


def shaped(dense: nn.Module, input_shape: Sequence[int], strategy: Strategy) -> nn.Module:
    """Return a copy of ``dense`` with the widths of ``strategy``; which channels stay does not matter.

    Groups that the strategy lacks are not touched: it may lack them as they cannot be cut.
    """
    graph = trace(dense, noise_image(dense, input_shape))
    widths = dict(
        zip(graph.group_names, strategy.widths_for(graph.group_names, graph.dense_widths), strict=True)
    )
    known = {group.name for group in strategy.groups}
    graph = replace(graph, groups=tuple(group for group in graph.groups if group.name in known))
    return slice_model(dense, SlicePlan(graph, dense).cut([widths[name] for name in graph.group_names]))
