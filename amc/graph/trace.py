"""The channel groups of a network in forward order, and the channels that cannot be pruned, with reasons.

The dependencies come from torch-pruning (Fang et al., DepGraph, CVPR 2023), traced once on a copy of the
network. The result is plain frozen values: no module, gradient graph or torch-pruning object outlives
``trace``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import NotPrunableError, SettingError, first_line
from amc.graph.dependencies import Dependencies, Item, build_dependencies
from amc.graph.groups import OUTPUT_REASON, Axis, ChannelGroup, Graph, Slot, Unprunable
from amc.graph.layers import LAYERS, Layer, MapNorm, check_modules, trace_layers, unused_layers
from amc.graph.tied import tied_layers
from amc.models import OptionAShortcut
from amc.scoring.flatten import as_matrix
from amc.scoring.precision import without_autocast
from amc.scoring.run import copied, evaluating

_REFERS = "likely cause: a hook or an attribute that refers to the original network"
_UNUSED = "its outputs are not used in evaluation mode"
_WITHOUT_GRADIENTS = "runs without gradients, so its channels cannot be followed"

_Axis = tuple[str, Axis, str | None, int]
"""An axis as a ``Slot`` names it: module, axis, bare tensor or None, its dimension."""

_Places = dict[_Axis, dict[int, set[int]]]
"""Axis -> channel of the root -> positions on the axis that it owns."""


@without_autocast()
def trace(model: nn.Module, example: Tensor) -> Graph:
    """Find the layers and channel groups of ``model``.

    ``prove`` leaves groups whole that cannot be cut exactly, and ``with_other_macs`` counts multiply-adds
    outside of the layers, such as attention. A search needs both; ``CompressionTask`` does all three.

    Args:
        model: any network; it is not changed.
        example: one image (1, C, H, W); the network may write into its input, which is a copy.

    Raises:
        SettingError: the example is not one image.
        NotPrunableError: a part is compiled by ``torch.jit``, the network has no evaluation mode, the forward
            pass fails, its outputs do not form a matrix (``amc.scoring.flatten``), a copy of the network does
            not work, torch-pruning cannot trace it, or no channel can be pruned.
    """
    if example.ndim < 2 or len(example) != 1:  # a network of vectors computes as well
        raise SettingError(
            f"example has shape {tuple(example.shape)}; expected one image (1, C, H, W), such as images[:1]"
        )
    check_modules(model)
    layers, classifies = trace_layers(model, example)
    _check_copy(model, example)
    by_name = {layer.name: layer for layer in layers}
    dependencies = build_dependencies(model, example, by_name)
    found = dependencies.layers
    unused = unused_layers(model, example, [name for name in by_name if name not in found])
    if unused:  # traced again without them, as everything that is handed this graph traces the network
        layers = tuple(layer for layer in layers if layer.name not in unused)
        dependencies = build_dependencies(model, example, [layer.name for layer in layers])
    groups, unprunable = _find_groups(dependencies, by_name, tied_layers(model), unused)
    if not groups:
        raise NotPrunableError(f"{type(model).__name__} has no prunable layers: {_reasons(unprunable)}")
    return Graph(
        layers=layers,
        groups=groups,
        unprunable=unprunable,
        norm_after=_norm_after(dependencies, {layer.name for layer in layers if layer.flaw is None}),
        input_shape=tuple(example.shape[1:]),
        classifies=classifies,
    )


def _check_copy(model: nn.Module, example: Tensor) -> None:
    """Refuse a network that only works as the object it is: all work is done on copies.

    Raises:
        NotPrunableError: it cannot be copied, the forward pass of the copy fails, or the copy computes
            something else.
    """
    kind = type(model).__name__
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            other = _copy_differs(model, example)
    except Exception as error:  # whatever the network's own code raises
        raise NotPrunableError(
            f"a copy of {kind} (copy.deepcopy) does not work: {type(error).__name__}: "
            f"{first_line(error)}; {_REFERS}, or a kept result of a forward pass without .detach()"
        ) from error
    if other:
        raise NotPrunableError(
            f"a copy of {kind} (copy.deepcopy) computes something else than the network itself; {_REFERS}"
        )


def _copy_differs(model: nn.Module, example: Tensor) -> bool:
    """Return whether a copy computes something else than the network; not for one that draws numbers.

    A hook of a copy may still write into the original network, and the copy then reads what the original had
    put aside when it was copied. That comes from noise here: a first copy has run on it.
    """
    other = torch.Generator().manual_seed(1)  # the example may be ``noise_image``
    noise = torch.randn(example.shape, generator=other).to(example)
    with contextlib.suppress(Exception):  # not every network takes noise; what it says comes with the proof
        _outputs(copied(model), noise)
    if _alike(_outputs(copied(model), example), _outputs(model, example)):
        return False
    twins = copied(model), copied(model)  # both are made before one of them can write into the original
    return _alike(*(_outputs(twin, example) for twin in twins))


def _outputs(model: nn.Module, example: Tensor) -> Tensor:
    with evaluating(model):
        return as_matrix(model(example.clone()), len(example))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return whether outputs are the same but for rounding; NaN and infinity are like anything."""
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    largest = torch.maximum(one.abs().max(), other.abs().max())
    return not bool((one - other).abs().max() > 1000 * torch.finfo(one.dtype).eps * largest)


def _reasons(unprunable: Sequence[Unprunable], most: int = 3) -> str:
    """Return the first few reasons in one line."""
    found = list(dict.fromkeys(item.reason for item in unprunable))
    if not found:
        return "it has no Conv2d or Linear layer"
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _find_groups(
    dependencies: Dependencies, layers: Mapping[str, Layer], tied: Mapping[str, str], unused: Set[str]
) -> tuple[tuple[ChannelGroup, ...], tuple[Unprunable, ...]]:
    order = {name: i for i, name in enumerate(layers)}
    groups: list[ChannelGroup] = []
    whole: list[tuple[Sequence[Item], str]] = []
    for items in dependencies.groups():
        root = dependencies.name_of(items[0].node.module)
        reason = _why_unprunable(dependencies, items, layers, tied)
        if reason is not None:
            whole.append((items, reason))
            continue
        groups.extend(_split_into_groups(dependencies, items, root, layers, order))
    pruned = {name for group in groups for name in group.producers}
    unprunable = _left_whole(dependencies, whole, layers, pruned)
    unprunable += [
        Unprunable(name, layer.out_channels, _UNUSED if name in unused else _WITHOUT_GRADIENTS)
        for name, layer in layers.items()
        if name not in dependencies.layers
    ]
    groups.sort(key=lambda group: (order[group.leading], group.root_channels))
    groups = _numbered(groups)
    unprunable.sort(key=lambda item: order.get(item.name, len(order)))
    return tuple(groups), tuple(unprunable)


def _numbered(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Number the groups of a leading layer anew if two have one name: they come from different roots."""
    times = Counter(group.name for group in groups)
    twice = {group.leading for group in groups if times[group.name] > 1}
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    return [
        replace(group, name=f"{group.leading}#{next(numbers[group.leading])}")
        if group.leading in twice
        else group
        for group in groups
    ]


def _left_whole(
    dependencies: Dependencies,
    whole: Sequence[tuple[Sequence[Item], str]],
    layers: Mapping[str, Layer],
    pruned: Set[str],
) -> list[Unprunable]:
    """Name the channels that keep their width by the first layer that produces them, with its width.

    Layers that produce others of the same torch-pruning group have entries of their own, unless they are
    ``pruned`` elsewhere: those of a concatenation, or of another width.
    """
    listed = [(_producers(dependencies, items, layers), reason) for items, reason in whole]
    found = dict.fromkeys(Unprunable(name, width, reason) for ((name, width, _), *_), reason in listed)
    names = {item.name for item in found} | pruned
    for producers, reason in listed:
        told = {producers[0][1:]}
        for name, width, channels in producers[1:]:
            dense = name in layers and not layers[name].depthwise
            if dense and name not in names and (width, channels) not in told:
                found[Unprunable(name, width, reason)] = None
                names.add(name)
                told.add((width, channels))
    return list(found)


def _producers(
    dependencies: Dependencies, items: Sequence[Item], layers: Mapping[str, Layer]
) -> list[tuple[str, int, frozenset[int]]]:
    """Return the layers that produce a group's channels, in forward order.

    Returns:
        Of each layer the name, the width, and the channels of the root that it has.
    """
    order = {name: i for i, name in enumerate(layers)}
    found = []
    for item in items:
        module = item.node.module
        if isinstance(module, LAYERS) and dependencies.graph.is_out_channel_pruning_fn(item.handler):
            name = dependencies.name_of(module)
            width = layers[name].out_channels if name in layers else len(item.idxs)
            found.append((name, width, frozenset(item.root_idxs)))
    return sorted(found, key=lambda each: order.get(each[0], len(order)))


def _why_unprunable(
    dependencies: Dependencies, items: Sequence[Item], layers: Mapping[str, Layer], tied: Mapping[str, str]
) -> str | None:
    """Return why a torch-pruning group must keep its width, or None."""
    from torch_pruning.ops import OPTYPE

    plain = {
        OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.BN, OPTYPE.LINEAR, OPTYPE.PRELU, OPTYPE.ELEMENTWISE,
        OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.SLICE, OPTYPE.RESHAPE, OPTYPE.CUSTOMIZED,
        OPTYPE.IN, OPTYPE.PARAMETER,
    }  # fmt: skip
    for item in items:
        node = item.node
        name = dependencies.name_of(node.module)
        if (wall := dependencies.wall(item)) is not None:
            return wall
        if node.type == OPTYPE.OUTPUT:
            return OUTPUT_REASON
        if node.type in (OPTYPE.LN, OPTYPE.GN):
            return f"{name} normalises over the channels: removing some would change the others"
        if node.type == OPTYPE.MHA:
            return f"{name} is an attention layer, whose width is fixed"
        if node.type == OPTYPE.PARAMETER and (reason := _why_parameter_unprunable(dependencies, item, name)):
            return reason
        if dependencies.across(item):
            return f"{name} is a linear layer over positions, applied to each of these channels"
        if dependencies.single(item):
            return "its one channel is broadcast to all channels of a map"
        if node.type not in plain:
            return f"{name or node.type.name.lower()} ({type(node.module).__name__}) is not supported"
        if isinstance(node.module, LAYERS):
            reason = _why_layer_unprunable(node.module, name, layers)
            if reason is not None:
                return reason
            if name in tied:
                return tied[name]
        elif isinstance(node.module, nn.modules.conv._ConvNd):
            return f"{name} ({type(node.module).__name__}) is not supported"
    return None


def _why_parameter_unprunable(dependencies: Dependencies, item: Item, name: str) -> str | None:
    if not dependencies.per_channel(item.node.module):
        return f"{name} is a bare parameter on the same channels"
    if dependencies.unsaved(name):
        return f"{name} is a buffer on the same channels that is not saved with the weights"
    return None


def _why_layer_unprunable(module: nn.Module, name: str, layers: Mapping[str, Layer]) -> str | None:
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

    Channels of the root that share a position on some axis (a map concatenated with a depthwise copy of
    itself, and the sum of both) are one channel. Channels on different sets of axes (in a sum and a
    concatenation, for example) become different groups: only then does the number of kept channels of each
    group determine the shape of every layer.
    """
    places = _places(dependencies, items)
    reductions = tuple(sorted(set(filter(None, map(dependencies.reduction, items)))))
    members = _unite(places.values())
    signatures: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for channel in members:
        signature = tuple(
            sorted(
                ((place, len(at[channel])) for place, at in places.items() if at.get(channel)),
                key=lambda pair: (pair[0][:2], pair[0][2] or ""),
            )
        )
        signatures[signature].append(channel)
    groups = []
    for number, (signature, channels) in enumerate(signatures.items()):
        slots = tuple(
            Slot(
                module,
                axis,
                tuple(tuple(sorted(places[module, axis, tensor, dim][channel])) for channel in channels),
                tensor,
                dim,
            )
            for (module, axis, tensor, dim), _ in signature
        )
        suffix = "" if len(signatures) == 1 else f"#{number}"
        own = tuple(members[channel] for channel in channels)
        group = _channel_group(slots, layers, order, suffix, root, own)
        groups.append(replace(group, reductions=reductions))
    return groups


def _places(dependencies: Dependencies, items: Sequence[Item]) -> _Places:
    """Return which channel of the root owns which positions of each axis."""
    places: _Places = defaultdict(lambda: defaultdict(set))
    for item in items:
        module = item.node.module
        name = dependencies.name_of(module)
        if not name or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            continue
        axis = _axis(dependencies, item, name, module)
        for position, channel in zip(item.idxs, item.root_idxs, strict=True):
            places[axis][channel].add(position)
    return places


def _channel_group(
    slots: tuple[Slot, ...],
    layers: Mapping[str, Layer],
    order: Mapping[str, int],
    suffix: str,
    root: str,
    root_channels: tuple[tuple[int, ...], ...],
) -> ChannelGroup:
    """Build a group from its slots; ``suffix`` is added to the name of its leading layer."""
    producers = _layers_at("out", slots, order)
    dense = tuple(name for name in producers if not layers[name].depthwise)
    leading = (dense or producers)[0]
    return ChannelGroup(
        name=leading + suffix,
        width=len(root_channels),
        leading=leading,
        producers=dense,
        followers=tuple(name for name in producers if layers[name].depthwise),
        readers=_layers_at("in", slots, order),
        slots=slots,
        root=root,
        root_channels=root_channels,
    )


def _layers_at(axis: Axis, slots: Sequence[Slot], order: Mapping[str, int]) -> tuple[str, ...]:
    """Return the layers that have slots on an axis, in forward order."""
    names = [slot.module for slot in slots if slot.axis == axis and slot.module in order]
    return tuple(sorted(names, key=order.__getitem__))


def _unite(axes: Iterable[dict[int, set[int]]]) -> dict[int, tuple[int, ...]]:
    """Unite channels that share a position on an axis into the first of them.

    The positions of the others are moved to it in ``axes``.

    Returns:
        First channel -> all of its members, ascending.
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


def _axis(dependencies: Dependencies, item: Item, name: str, module: nn.Module) -> _Axis:
    """Return the axis of ``module`` that an item lies on; norm and depthwise layers have only 'out'."""
    if isinstance(module, nn.Parameter):
        owner, _, own = name.rpartition(".")
        return owner, "out", own, item.node.pruning_dim
    depthwise = isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups > 1
    two = isinstance(module, (*LAYERS, OptionAShortcut)) and not depthwise
    reads = two and not dependencies.graph.is_out_channel_pruning_fn(item.handler)
    return name, "in" if reads else "out", None, 0


def _norm_after(dependencies: Dependencies, plain: Set[str]) -> dict[str, str]:
    """Pair every convolution with the batch norm that is its only consumer.

    Only for ``plain`` layers: a scale cannot be folded into a convolution that transforms its weight.
    """
    pairs = {}
    for module, node in dependencies.graph.module2node.items():
        name = dependencies.name_of(module)
        if not isinstance(module, nn.Conv2d) or name not in plain or len(node.outputs) != 1:
            continue
        consumer = node.outputs[0]
        if isinstance(consumer.module, MapNorm) and len(consumer.inputs) == 1:
            pairs[name] = dependencies.name_of(consumer.module)
    return pairs
