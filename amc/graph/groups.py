"""The values that tracing a network gives: its channel groups, and what stays whole and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from amc.errors import AmcError, did_you_mean
from amc.graph.layers import Layer

Axis = Literal["in", "out"]


@dataclass(frozen=True)
class Slot:
    """Where the channels of one group lie on one axis of one module.

    ``positions[i]`` are the indices on the axis that channel ``i`` of the group owns: one, or several
    when a feature map was flattened into a linear layer.
    """

    module: str
    axis: Axis
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be kept or removed together.

    Attributes:
        name: name of the leading layer (with ``#k`` where one layer's channels fall into several groups).
        width: dense number of channels.
        leading: the first layer, in forward order, that produces the channels.
        producers: dense layers whose filters make the channels; more than one when coupled by a sum.
        followers: depthwise layers that carry the channels through.
        readers: layers that read the channels and mix them.
        slots: all axes on which the channels lie, norm layers included.
        root, root_channels: how torch-pruning addresses the group: a layer, and its outputs of each channel.
    """

    name: str
    width: int
    leading: str
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    readers: tuple[str, ...]
    slots: tuple[Slot, ...]
    root: str
    root_channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Unprunable:
    """Channels that stay at full width, and why."""

    name: str
    width: int
    reason: str


@dataclass(frozen=True)
class Graph:
    """What ``trace`` found.

    Attributes:
        layers: convolution and linear layers in forward order.
        groups: prunable channel groups in forward order.
        unprunable: the others, with reasons.
        norm_after: plain convolution -> the batch norm that alone reads its output.
        input_shape: (channels, height, width) of the traced image.
        classifies: whether the network returns one tensor of logits (N, classes).
        other_macs: multiply-adds outside of ``layers`` that no width changes, see ``amc.cost.counted``.
    """

    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    unprunable: tuple[Unprunable, ...]
    norm_after: Mapping[str, str]
    input_shape: tuple[int, ...]
    classifies: bool = True
    other_macs: int = 0

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Width of every group before pruning."""
        return tuple(group.width for group in self.groups)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups in forward order."""
        return tuple(group.name for group in self.groups)

    def layer(self, name: str) -> Layer:
        """Return a layer by name."""
        return next(layer for layer in self.layers if layer.name == name)


def exclude_groups(
    graph: Graph, patterns: Sequence[str], *, prune_coupled: bool = True, max_inputs: int | None = None
) -> Graph:
    """Return the graph with some groups left at full width.

    Args:
        patterns: names of groups, ``*`` and ``?`` allowed.
        prune_coupled: False also leaves out the groups that several layers produce together, such as the
            residual stream of a stage: they cost most accuracy before fine-tuning.
        max_inputs: leaves out groups that a layer with more inputs (channels times kernel) reads: its second
            moments take the square of them in memory.

    Raises:
        AmcError: a pattern fits no group, or no group would be left.
    """
    reasons: dict[str, str] = {}
    for pattern in patterns:
        fitting = fnmatch.filter(graph.group_names, pattern)
        if not fitting:
            hint = did_you_mean(pattern, graph.group_names) or "; stages=[inspect] lists them"
            raise AmcError(f"compressor.exclude has {pattern!r}, which fits no channel group{hint}")
        reasons |= dict.fromkeys(fitting, "excluded by compressor.exclude")
    if not prune_coupled:
        coupled = [group.name for group in graph.groups if len(group.producers) > 1]
        reasons |= dict.fromkeys(coupled, "coupled by a sum, and compressor.prune_coupled is false")
    if max_inputs is not None:
        for group in graph.groups:
            inputs = max((graph.layer(name).inputs for name in group.readers), default=0)
            if inputs > max_inputs:
                reasons[group.name] = (
                    f"read by a layer of {inputs:,} inputs, and compressor.max_inputs is {max_inputs:,}"
                )
    if not reasons:
        return graph
    kept = tuple(group for group in graph.groups if group.name not in reasons)
    if not kept:
        raise AmcError("compressor.exclude, prune_coupled and max_inputs leave no channel group to prune")
    left_out = [Unprunable(g.name, g.width, reasons[g.name]) for g in graph.groups if g.name in reasons]
    return replace(graph, groups=kept, unprunable=(*graph.unprunable, *left_out))
