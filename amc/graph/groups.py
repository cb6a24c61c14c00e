"""The result of tracing a network: its channel groups, and the channels that keep their width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from amc.errors import SettingError, did_you_mean
from amc.graph.layers import Layer
from amc.graph.patterns import matches

Axis = Literal["in", "out"]


@dataclass(frozen=True)
class Slot:
    """The positions of one group's channels on one axis of one module.

    Attributes:
        module: name of the module.
        axis: its input or output channels.
        positions: for each channel of the group, the indices on the axis that it owns: one, or several
            where a feature map is flattened into a linear layer.
        tensor: name of a bare parameter or buffer of the module that alone has the channels; None if the
            module is a layer or norm that has them.
        dim: the axis of the bare tensor that holds the channels.
    """

    module: str
    axis: Axis
    positions: tuple[tuple[int, ...], ...]
    tensor: str | None = None
    dim: int = 0

    @property
    def place(self) -> str:
        """Name of the module or bare tensor in the network."""
        return self.module if self.tensor is None else f"{self.module}.{self.tensor}".lstrip(".")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept or removed together.

    Attributes:
        name: name of the leading layer, with ``#k`` if its channels belong to several groups.
        width: dense number of channels.
        leading: the first layer, in forward order, that produces the channels.
        producers: dense layers whose filters produce the channels; several if they are coupled by a sum.
        followers: depthwise layers that the channels pass through.
        readers: consumer layers, which mix the channels.
        slots: all axes that hold the channels, including those of norm layers.
        root: the layer by which torch-pruning addresses the group.
        root_channels: for each channel of the group, the outputs of ``root`` that it owns.
        reductions: what is taken of all channels, such as "a maximum".
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
    reductions: tuple[str, ...] = ()


OUTPUT_REASON = "its channels are the network's output"
"""Why the last channels of every network stay whole."""


@dataclass(frozen=True)
class Unprunable:
    """Channels that keep their full width, and the reason."""

    name: str
    width: int
    reason: str


@dataclass(frozen=True)
class Graph:
    """The layers and channel groups of a network (``amc.graph.trace``).

    Attributes:
        layers: convolution and linear layers in forward order, but those on which no output depends.
        groups: prunable channel groups in forward order.
        unprunable: the other channels, with reasons.
        norm_after: ordinary convolution -> the batch norm that is the only consumer of its output.
        input_shape: (channels, height, width) of the traced image, in pixels.
        classifies: whether the network returns one tensor of logits (N, classes).
        other_macs: multiply-adds outside of ``layers``, which no width changes (``amc.cost.constant``).
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
        """Return a layer by name.

        Raises:
            StopIteration: there is none.
        """
        return next(layer for layer in self.layers if layer.name == name)


def exclude_groups(
    graph: Graph, patterns: str | Sequence[str], *, prune_coupled: bool = True, max_inputs: int | None = None
) -> Graph:
    """Return the graph with some groups kept at full width.

    Args:
        patterns: names of groups to exclude, or one name; ``*``, ``?`` and ``[12]`` are wildcards.
        prune_coupled: False also excludes the groups that several layers produce together, such as the
            residual stream of a stage. They cost the most accuracy before fine-tuning.
        max_inputs: excludes groups with a consumer layer of more inputs (channels x kernel). The second
            moments of its inputs take memory in proportion to the square of this number.

    Raises:
        SettingError: a pattern matches no group, or no group would be left.
    """
    reasons: dict[str, str] = {}
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        fitting = [name for name in graph.group_names if matches(name, pattern)]
        if not fitting:
            hint = did_you_mean(pattern, graph.group_names) or f"; the first is {graph.group_names[0]!r}"
            raise SettingError(f"exclude has {pattern!r}, which matches no channel group{hint}")
        reasons |= dict.fromkeys(fitting, "excluded by its name")
    if not prune_coupled:
        coupled = [group.name for group in graph.groups if len(group.producers) > 1]
        reasons |= dict.fromkeys(coupled, "coupled by a sum, and prune_coupled is false")
    if max_inputs is not None:
        for group in graph.groups:
            inputs = max((graph.layer(name).inputs for name in group.readers), default=0)
            if inputs > max_inputs:
                reasons[group.name] = (
                    f"consumed by a layer of {inputs:,} inputs, and max_inputs is {max_inputs:,}"
                )
    kept = leave_whole(graph, reasons)
    if not kept.groups:
        raise SettingError("exclude, prune_coupled and max_inputs leave no channel group to prune")
    return kept


def named_layers(graph: Graph, patterns: Sequence[str]) -> frozenset[str]:
    """Return the names of layers that fit a pattern, and of those that produce a group whose name does.

    Args:
        graph: with all of its groups.
        patterns: as those of ``exclude_groups``.
    """
    groups = [group for group in graph.groups if any(matches(group.name, each) for each in patterns)]
    layers = [layer.name for layer in graph.layers if any(matches(layer.name, each) for each in patterns)]
    return frozenset({*layers, *(name for group in groups for name in group.producers)})


def leave_whole(graph: Graph, reasons: Mapping[str, str]) -> Graph:
    """Return the graph with some groups kept at full width; all of them may be.

    Args:
        reasons: name of a group -> why it keeps its width.
    """
    if not reasons:
        return graph
    kept = tuple(group for group in graph.groups if group.name not in reasons)
    left = [group for group in graph.groups if group.name in reasons]
    entries = [Unprunable(g.name, min(g.width, _outputs(graph, g.leading)), reasons[g.name]) for g in left]
    entries += [Unprunable(name, _outputs(graph, name), why) for name, why in _untold(graph, left, reasons)]
    return replace(graph, groups=kept, unprunable=(*graph.unprunable, *entries))


def _outputs(graph: Graph, name: str) -> int:
    return graph.layer(name).out_channels


def _made(group: ChannelGroup) -> list[Slot]:
    """Return the slots of modules that hold a group's channels as their outputs."""
    return [slot for slot in group.slots if slot.axis == "out" and slot.tensor is None]


def _untold(
    graph: Graph, left: Sequence[ChannelGroup], reasons: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the layers of groups that are left whole with channels of which no group tells, and the reason.

    Of layers that hold a group's channels in the same places the first one tells. One that groups which stay
    hold channels of is none of them.
    """
    pruned = {name for group in graph.groups if group.name not in reasons for name in group.producers}
    told = {item.name for item in graph.unprunable} | {group.leading for group in left}
    known: dict[str, set[int]] = {}
    for slot in (slot for group in graph.groups for slot in _made(group)):
        known.setdefault(slot.module, set()).update(*slot.positions)
    for group in left:
        places = {slot.module: slot.positions for slot in _made(group)}
        fits = group.width <= _outputs(graph, group.leading)  # else the graph is wrong about this group
        seen = set()
        for name in group.producers:
            stream = places[name], _outputs(graph, name)
            whole = fits and len(known[name]) >= stream[1]
            if name in pruned | told or whole or stream in seen:
                continue
            seen.add(stream)
            told.add(name)
            yield name, reasons[group.name]
