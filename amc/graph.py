"""The channel groups of a network: what can be pruned together, in forward order, and what cannot and why.

Dependencies come from torch-pruning (Fang et al., DepGraph, CVPR 2023), traced once on a copy of the
network. Everything that the rest of the project needs is kept as plain frozen values: no module, no
gradient graph and no torch-pruning object outlives ``trace``.
"""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.evaluation import evaluating
from amc.models import OptionAShortcut

Axis = Literal["in", "out"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as it ran on one example image.

    Attributes:
        kernel_size, stride: (height, width); (1, 1) for a linear layer.
        groups: convolution groups; equal to ``out_channels`` for a depthwise layer.
        in_size, out_size: feature-map (height, width); (1, 1) for a linear layer on a vector.
        positions: output positions per image, summed over all calls of the layer.
        calls: how often it runs in one forward pass.
    """

    name: str
    kind: Literal["conv", "linear"]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    positions: int
    bias: bool
    calls: int = 1

    @property
    def depthwise(self) -> bool:
        """Whether every channel has a filter of its own."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-adds per image at dense widths."""
        taps = prod(self.kernel_size) * self.in_channels // self.groups
        return self.positions * taps * self.out_channels


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
        root, root_channels: how torch-pruning addresses the group.
    """

    name: str
    width: int
    leading: str
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    readers: tuple[str, ...]
    slots: tuple[Slot, ...]
    root: str
    root_channels: tuple[int, ...]


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
        norm_after: convolution -> the batch norm that alone reads its output.
        input_shape: (channels, height, width) of the traced image.
    """

    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    unprunable: tuple[Unprunable, ...]
    norm_after: Mapping[str, str]
    input_shape: tuple[int, ...]

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


def trace(model: nn.Module, example: Tensor) -> Graph:
    """Find the layers and channel groups of ``model``.

    Args:
        model: any network; it is left untouched.
        example: one image (1, C, H, W).

    Raises:
        AmcError: the forward pass fails, returns no plain tensor, or no channel can be pruned.
    """
    layers = trace_layers(model, example)
    dependencies = build_dependencies(model, example)
    groups, unprunable = _find_groups(dependencies, {layer.name: layer for layer in layers})
    if not groups:
        reasons = (
            "; ".join(sorted({item.reason for item in unprunable})) or "it has no Conv2d or Linear layer"
        )
        raise AmcError(f"{type(model).__name__} has no prunable layers: {reasons}")
    return Graph(
        layers=layers,
        groups=groups,
        unprunable=unprunable,
        norm_after=_norm_after(dependencies),
        input_shape=tuple(example.shape[1:]),
    )


def exclude_groups(graph: Graph, patterns: Sequence[str], *, prune_coupled: bool = True) -> Graph:
    """Return the graph with some groups left at full width.

    Args:
        patterns: names of groups, ``*`` and ``?`` allowed.
        prune_coupled: False also leaves out the groups that several layers produce together, such as the
            residual stream of a stage: they cost most accuracy before fine-tuning.

    Raises:
        AmcError: a pattern fits no group, or no group would be left.
    """
    reasons: dict[str, str] = {}
    for pattern in patterns:
        fitting = fnmatch.filter(graph.group_names, pattern)
        if not fitting:
            near = get_close_matches(pattern, graph.group_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; stages=[inspect] lists them"
            raise AmcError(f"compressor.exclude has {pattern!r}, which fits no channel group{hint}")
        reasons |= dict.fromkeys(fitting, "excluded by compressor.exclude")
    if not prune_coupled:
        coupled = [group.name for group in graph.groups if len(group.producers) > 1]
        reasons |= dict.fromkeys(coupled, "coupled by a sum, and compressor.prune_coupled is false")
    if not reasons:
        return graph
    kept = tuple(group for group in graph.groups if group.name not in reasons)
    if not kept:
        raise AmcError("compressor.exclude and prune_coupled leave no channel group to prune")
    left_out = [Unprunable(g.name, g.width, reasons[g.name]) for g in graph.groups if g.name in reasons]
    return replace(graph, groups=kept, unprunable=(*graph.unprunable, *left_out))


def trace_layers(model: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """Run ``model`` once on ``example`` and describe its layers in the order of their first call."""
    calls: dict[str, list[tuple[torch.Size, torch.Size]]] = defaultdict(list)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def record(name: str) -> Any:
        def hook(
            _module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor], output: Tensor
        ) -> None:
            source = args[0] if args else next(iter(options.values()))
            calls[name].append((source.shape, output.shape))

        return hook

    hooks = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.no_grad(), evaluating(model):
            output = model(example)
    except (RuntimeError, TypeError, ValueError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise AmcError(
            f"{type(model).__name__} fails on an image of shape {tuple(example.shape[1:])}: {first}; "
            "does the data's image size fit the model?"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = (
            f"a tensor of shape {tuple(output.shape)}"
            if isinstance(output, Tensor)
            else type(output).__name__
        )
        raise AmcError(f"{type(model).__name__} returned {got}; expected logits, one tensor (batch, classes)")
    return tuple(_describe(name, modules[name], shapes) for name, shapes in calls.items())


def _describe(name: str, module: nn.Conv2d | nn.Linear, shapes: list[tuple[torch.Size, torch.Size]]) -> Layer:
    in_shape, out_shape = shapes[0]
    if isinstance(module, nn.Conv2d):
        return Layer(
            name=name,
            kind="conv",
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel_size=(module.kernel_size[0], module.kernel_size[1]),
            stride=(module.stride[0], module.stride[1]),
            groups=module.groups,
            in_size=(in_shape[-2], in_shape[-1]),
            out_size=(out_shape[-2], out_shape[-1]),
            positions=sum(out[-2] * out[-1] for _, out in shapes),
            bias=module.bias is not None,
            calls=len(shapes),
        )
    tokens = [prod(out[1:-1]) for _, out in shapes]
    return Layer(
        name=name,
        kind="linear",
        in_channels=module.in_features,
        out_channels=module.out_features,
        kernel_size=(1, 1),
        stride=(1, 1),
        groups=1,
        in_size=(1, tokens[0]),
        out_size=(1, tokens[0]),
        positions=sum(tokens),
        bias=module.bias is not None,
        calls=len(shapes),
    )


@dataclass(frozen=True)
class Dependencies:
    """torch-pruning's graph of a copy of the network, for one tracing or one surgery."""

    graph: Any
    model: nn.Module

    def name_of(self, module: Any) -> str:
        """Name of a module in the network ('' for an operation that is no module)."""
        return self.graph._module2name.get(module, "")


def build_dependencies(model: nn.Module, example: Tensor) -> Dependencies:
    """Let torch-pruning trace a copy of ``model``.

    The copy has every parameter trainable, since torch-pruning silently skips frozen ones, and its output
    passes through one more operation, so that channels which reach the output are marked as such.
    """
    import torch_pruning as tp

    twin = copy.deepcopy(model).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(
                twin,
                example.detach().clone(),
                output_transform=lambda output: output * 1,
                customized_pruners={OptionAShortcut: _shortcut_pruner()},
                verbose=False,
            )
    except Exception as error:  # torch-pruning fails in many ways on graphs that it does not know
        reason = str(error).strip().split("\n", 1)[0]
        raise AmcError(
            f"torch-pruning cannot trace {type(model).__name__}: {type(error).__name__}: {reason}; "
            "the network uses an operation that the channel graph does not support"
        ) from error
    return Dependencies(graph, twin)


def _shortcut_pruner() -> Any:
    """Teach torch-pruning that an option-A shortcut has an input and an output axis of its own."""
    from torch_pruning.pruner.function import BasePruningFunc

    class ShortcutPruner(BasePruningFunc):
        TARGET_MODULES = OptionAShortcut

        def prune_out_channels(self, layer: OptionAShortcut, idxs: Iterable[int]) -> OptionAShortcut:
            dropped = set(idxs)
            keep = torch.tensor([i for i in range(layer.out_channels) if i not in dropped])
            slice_shortcut(layer, None, keep)
            return layer

        def prune_in_channels(self, layer: OptionAShortcut, idxs: Iterable[int]) -> OptionAShortcut:
            dropped = set(idxs)
            keep = torch.tensor([i for i in range(layer.in_channels) if i not in dropped])
            slice_shortcut(layer, keep, None)
            return layer

        def get_out_channels(self, layer: OptionAShortcut) -> int:
            return layer.out_channels

        def get_in_channels(self, layer: OptionAShortcut) -> int:
            return layer.in_channels

    return ShortcutPruner()


def slice_shortcut(module: OptionAShortcut, keep_in: Tensor | None, keep_out: Tensor | None) -> None:
    """Keep the given channels of an option-A shortcut, in place; a removed source becomes a zero channel."""
    source = module.source
    if keep_out is not None:
        source = source[keep_out]
    if keep_in is not None:
        moved = torch.full((module.in_channels,), -1, dtype=source.dtype, device=source.device)
        moved[keep_in] = torch.arange(len(keep_in), dtype=source.dtype, device=source.device)
        source = torch.where(source >= 0, moved[source.clamp(min=0)], source)
        module.in_channels = len(keep_in)
    module.source = source
    module.out_channels = len(source)


def _find_groups(
    dependencies: Dependencies, layers: Mapping[str, Layer]
) -> tuple[tuple[ChannelGroup, ...], tuple[Unprunable, ...]]:
    order = {name: i for i, name in enumerate(layers)}
    groups: list[ChannelGroup] = []
    unprunable: list[Unprunable] = []
    for items in dependencies.graph.get_all_groups(root_module_types=(nn.Conv2d, nn.Linear)):
        root = dependencies.name_of(items[0].dep.target.module)
        reason = _why_unprunable(dependencies, items, layers)
        if reason is not None:
            unprunable.append(Unprunable(root, len(items[0].idxs), reason))
            continue
        groups.extend(_split_into_groups(dependencies, items, root, layers, order))
    groups.sort(key=lambda group: (order[group.leading], group.root_channels))
    unprunable.sort(key=lambda item: order.get(item.name, len(order)))
    return tuple(groups), tuple(unprunable)


def _why_unprunable(dependencies: Dependencies, items: Any, layers: Mapping[str, Layer]) -> str | None:
    """Say why a torch-pruning group must stay whole, or None."""
    from torch_pruning.ops import OPTYPE

    plain = {
        OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.BN, OPTYPE.LINEAR, OPTYPE.PRELU, OPTYPE.ELEMENTWISE,
        OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.SLICE, OPTYPE.RESHAPE, OPTYPE.CUSTOMIZED,
    }  # fmt: skip
    for item in items:
        node = item.dep.target
        name = dependencies.name_of(node.module)
        if node.type == OPTYPE.OUTPUT:
            return "its channels are the network's output"
        if node.type in (OPTYPE.LN, OPTYPE.GN):
            return f"{name} normalises over the channels: removing some would change the others"
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
        if any(root is None for root in item.root_idxs):
            return f"the channels cannot be followed through {name or type(node.module).__name__}"
    return None


def _why_layer_unprunable(
    module: nn.Conv2d | nn.Linear, name: str, layers: Mapping[str, Layer]
) -> str | None:
    if name not in layers:
        return f"{name} does not run in the forward pass"
    layer = layers[name]
    if layer.groups > 1 and not layer.depthwise:
        return f"{name} is a grouped convolution (groups={layer.groups})"
    if layer.calls > 1:
        return f"{name} is called {layer.calls} times with shared weights"
    return None


def _split_into_groups(
    dependencies: Dependencies, items: Any, root: str, layers: Mapping[str, Layer], order: Mapping[str, int]
) -> list[ChannelGroup]:
    """Turn one torch-pruning group into channel groups.

    Channels of the root that lie on different sets of axes (a sum with a concatenation, say) are groups of
    their own: only then does a count of kept channels determine every layer's shape.
    """
    axes: dict[tuple[str, Axis], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for item in items:
        module = item.dep.target.module
        name = dependencies.name_of(module)
        if not name or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            continue
        for axis in _axes(dependencies, item.dep, module):
            for position, channel in zip(item.idxs, item.root_idxs, strict=True):
                axes[name, axis][channel].add(position)
    signatures: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for channel in range(len(items[0].idxs)):
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
                root_channels=tuple(channels),
            )
        )
    return groups


def _axes(dependencies: Dependencies, dep: Any, module: nn.Module) -> tuple[Axis, ...]:
    """Which axis of ``module`` a dependency speaks of; norm and depthwise layers have one, 'out'."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return ("out",)
    if isinstance(module, nn.Conv2d | nn.Linear | OptionAShortcut):
        return ("out",) if dependencies.graph.is_out_channel_pruning_fn(dep.handler) else ("in",)
    return ("out",)


def _norm_after(dependencies: Dependencies) -> dict[str, str]:
    """Pair every convolution with the batch norm that alone reads it."""
    pairs = {}
    for module, node in dependencies.graph.module2node.items():
        if not isinstance(module, nn.Conv2d) or len(node.outputs) != 1:
            continue
        reader = node.outputs[0]
        if isinstance(reader.module, nn.BatchNorm2d) and len(reader.inputs) == 1:
            pairs[dependencies.name_of(module)] = dependencies.name_of(reader.module)
    return pairs
