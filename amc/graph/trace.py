"""The channel groups of a network: what can be pruned together, in forward order, and what cannot and why.

Dependencies come from torch-pruning (Fang et al., DepGraph, CVPR 2023), traced once on a copy of the
network. Everything that the rest of the project needs is kept as plain frozen values: no module, no
gradient graph and no torch-pruning object outlives ``trace``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

from amc.errors import AmcError
from amc.graph.dependencies import Dependencies, Item, build_dependencies
from amc.graph.groups import Axis, ChannelGroup, Graph, Slot, Unprunable
from amc.graph.layers import Layer, trace_layers
from amc.models import OptionAShortcut


def trace(model: nn.Module, example: Tensor) -> Graph:
    """Find the layers and channel groups of ``model``.

    Args:
        model: any network; it is left untouched.
        example: one image (1, C, H, W).

    Raises:
        AmcError: the forward pass fails, returns nothing to compare (``amc.scoring.flatten``), or no channel
            can be pruned.
    """
    layers, classifies = trace_layers(model, example)
    dependencies = build_dependencies(model, example)
    groups, unprunable = _find_groups(dependencies, {layer.name: layer for layer in layers})
    if not groups:
        raise AmcError(f"{type(model).__name__} has no prunable layers: {_reasons(unprunable)}")
    return Graph(
        layers=layers,
        groups=groups,
        unprunable=unprunable,
        norm_after=_norm_after(dependencies, {layer.name for layer in layers if layer.flaw is None}),
        input_shape=tuple(example.shape[1:]),
        classifies=classifies,
    )


def _reasons(unprunable: Sequence[Unprunable], most: int = 3) -> str:
    """Tell the first few reasons in one line."""
    found = list(dict.fromkeys(item.reason for item in unprunable))
    if not found:
        return "it has no Conv2d or Linear layer"
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _find_groups(
    dependencies: Dependencies, layers: Mapping[str, Layer]
) -> tuple[tuple[ChannelGroup, ...], tuple[Unprunable, ...]]:
    order = {name: i for i, name in enumerate(layers)}
    groups: list[ChannelGroup] = []
    unprunable: list[Unprunable] = []
    for items in dependencies.groups():
        root = dependencies.name_of(items[0].node.module)
        reason = _why_unprunable(dependencies, items, layers)
        if reason is not None:
            unprunable.append(
                Unprunable(_first_maker(dependencies, items, order), len(items[0].idxs), reason)
            )
            continue
        groups.extend(_split_into_groups(dependencies, items, root, layers, order))
    groups.sort(key=lambda group: (order[group.leading], group.root_channels))
    unprunable.sort(key=lambda item: order.get(item.name, len(order)))
    return tuple(groups), tuple(unprunable)


def _first_maker(dependencies: Dependencies, items: Sequence[Item], order: Mapping[str, int]) -> str:
    """Name of the first layer, in forward order, of those that make a group's channels."""
    made = (item.node.module for item in items if dependencies.graph.is_out_channel_pruning_fn(item.handler))
    names = [dependencies.name_of(module) for module in made if isinstance(module, nn.Conv2d | nn.Linear)]
    return min(names, key=lambda name: order.get(name, len(order)))


def _why_unprunable(
    dependencies: Dependencies, items: Sequence[Item], layers: Mapping[str, Layer]
) -> str | None:
    """Say why a torch-pruning group must stay whole, or None."""
    from torch_pruning.ops import OPTYPE

    plain = {
        OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.BN, OPTYPE.LINEAR, OPTYPE.PRELU, OPTYPE.ELEMENTWISE,
        OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.SLICE, OPTYPE.RESHAPE, OPTYPE.CUSTOMIZED,
    }  # fmt: skip
    for item in items:
        node = item.node
        name = dependencies.name_of(node.module)
        if (wall := dependencies.wall(item)) is not None:
            return wall
        if node.type == OPTYPE.OUTPUT:
            return "its channels are the network's output"
        if node.type in (OPTYPE.LN, OPTYPE.GN):
            return f"{name} normalises over the channels: removing some would change the others"
        if node.type == OPTYPE.MHA:
            return f"{name} is an attention layer, whose width stays"
        if node.type == OPTYPE.PARAMETER:
            return f"{name} is a bare parameter on the same channels"
        if node.type not in plain:
            return f"{name or node.type.name.lower()} ({type(node.module).__name__}) is not supported"
        if isinstance(node.module, nn.Conv2d | nn.Linear):
            reason = _why_layer_unprunable(node.module, name, layers)
            if reason is not None:
                return reason
        elif isinstance(node.module, nn.modules.conv._ConvNd):
            return f"{name} ({type(node.module).__name__}) is not supported"
    return None


def _why_layer_unprunable(
    module: nn.Conv2d | nn.Linear, name: str, layers: Mapping[str, Layer]
) -> str | None:
    if name not in layers:
        return f"{name} does not run in the forward pass"
    layer = layers[name]
    if layer.flaw is not None:
        return f"{name} {layer.flaw}"
    if layer.groups > 1 and not layer.depthwise:
        return f"{name} is a grouped convolution (groups={layer.groups})"
    if layer.calls > 1:
        return f"{name} is called {layer.calls} times with shared weights"
    return None


def _split_into_groups(
    dependencies: Dependencies,
    items: Sequence[Item],
    root: str,
    layers: Mapping[str, Layer],
    order: Mapping[str, int],
) -> list[ChannelGroup]:
    """Turn one torch-pruning group into channel groups.

    Channels of the root that share a place somewhere (a map beside a depthwise copy of itself, both added
    to the root's) are one channel. Those that lie on different sets of axes (a sum with a concatenation,
    say) are groups of their own: only then does a count of kept channels determine every layer's shape.
    """
    axes: dict[tuple[str, Axis], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for item in items:
        module = item.node.module
        name = dependencies.name_of(module)
        if not name or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            continue
        for axis in _axes(dependencies, item, module):
            for position, channel in zip(item.idxs, item.root_idxs, strict=True):
                axes[name, axis][channel].add(position)
    members = _unite(axes.values())
    signatures: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for channel in members:
        signature = tuple(sorted((key, len(at[channel])) for key, at in axes.items() if at.get(channel)))
        signatures[signature].append(channel)
    groups = []
    for number, (signature, channels) in enumerate(signatures.items()):
        slots = tuple(
            Slot(module, axis, tuple(tuple(sorted(axes[module, axis][c])) for c in channels))
            for (module, axis), _ in signature
        )
        producers = [s.module for s in slots if s.axis == "out" and s.module in layers]
        producers.sort(key=order.__getitem__)
        dense = [name for name in producers if not layers[name].depthwise]
        leading = (dense or producers)[0]
        groups.append(
            ChannelGroup(
                name=leading if len(signatures) == 1 else f"{leading}#{number}",
                width=len(channels),
                leading=leading,
                producers=tuple(dense),
                followers=tuple(name for name in producers if layers[name].depthwise),
                readers=tuple(
                    sorted(
                        (s.module for s in slots if s.axis == "in" and s.module in layers),
                        key=order.__getitem__,
                    )
                ),
                slots=slots,
                root=root,
                root_channels=tuple(members[channel] for channel in channels),
            )
        )
    return groups


def _unite(axes: Iterable[dict[int, set[int]]]) -> dict[int, tuple[int, ...]]:
    """Make one channel, the first, of all that share a position on an axis; return its members, ascending.

    The positions of the others are moved to it in ``axes``.
    """
    axes = list(axes)
    first: dict[int, int] = {}

    def find(channel: int) -> int:
        while first.setdefault(channel, channel) != channel:
            channel = first[channel]
        return channel

    for at in axes:
        owner: dict[int, int] = {}
        for channel, positions in at.items():
            for position in positions:
                one, other = sorted((find(channel), find(owner.setdefault(position, channel))))
                first[other] = one
    members: dict[int, list[int]] = defaultdict(list)
    for channel in sorted(first):
        members[find(channel)].append(channel)
    for at in axes:
        for channel in [each for each in at if find(each) != each]:
            at.setdefault(find(channel), set()).update(at.pop(channel))
    return {channel: tuple(own) for channel, own in members.items()}


def _axes(dependencies: Dependencies, item: Item, module: nn.Module) -> tuple[Axis, ...]:
    """Which axis of ``module`` an item speaks of; norm and depthwise layers have one, 'out'."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return ("out",)
    if isinstance(module, nn.Conv2d | nn.Linear | OptionAShortcut):
        return ("out",) if dependencies.graph.is_out_channel_pruning_fn(item.handler) else ("in",)
    return ("out",)


def _norm_after(dependencies: Dependencies, plain: Set[str]) -> dict[str, str]:
    """Pair every convolution of the plain layers with the batch norm that alone reads it.

    A scale cannot be moved into a convolution that does something else with its weight.
    """
    pairs = {}
    for module, node in dependencies.graph.module2node.items():
        name = dependencies.name_of(module)
        if not isinstance(module, nn.Conv2d) or name not in plain or len(node.outputs) != 1:
            continue
        reader = node.outputs[0]
        if isinstance(reader.module, nn.BatchNorm2d) and len(reader.inputs) == 1:
            pairs[name] = dependencies.name_of(reader.module)
    return pairs
