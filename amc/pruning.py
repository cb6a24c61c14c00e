"""Cutting channels out of a network, in three ways.

A *slice* takes the kept rows and columns of every tensor (what the search does for each candidate); the
*surgery* removes the channels through torch-pruning, an independent path to the same network; *zeroing*
keeps the dense shapes. All three must compute the same function (``amc.exactness``).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.graph.dependencies import build_dependencies
from amc.graph.groups import ChannelGroup, Graph
from amc.graph.layers import blank_image
from amc.models import OptionAShortcut
from amc.models.shortcut import slice_shortcut

Kept = Mapping[str, Tensor]
"""Group name -> kept channel indices of the group, ascending int64."""


@dataclass(frozen=True)
class Keep:
    """Kept indices on the two axes of a module, ascending; None leaves the axis whole."""

    inputs: Tensor | None = None
    outputs: Tensor | None = None


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


def _axis_length(module: nn.Module, axis: str) -> int:
    match module:
        case nn.Conv2d() | OptionAShortcut():
            return module.in_channels if axis == "in" else module.out_channels
        case nn.Linear():
            return module.in_features if axis == "in" else module.out_features
        case nn.modules.batchnorm._NormBase():
            return module.num_features
        case nn.PReLU():
            return module.num_parameters
    raise AmcError(f"{type(module).__name__} cannot be sliced")  # pragma: no cover - graph lists such groups


def sliced_tensors(module: nn.Module, keep: Keep) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``module`` at the kept indices, as new tensors."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        sliced = tensor.detach()
        if keep.outputs is not None and tensor.ndim > 0:
            sliced = sliced[keep.outputs]
        if keep.inputs is not None and name == "weight" and tensor.ndim > 1:
            sliced = sliced[:, keep.inputs]
        tensors[name] = sliced.contiguous()
    return tensors


def set_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace tensors of ``module`` in place and make its declared sizes follow them."""
    for name, tensor in tensors.items():
        if name in module._parameters:
            old = module._parameters[name]
            module._parameters[name] = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)
        else:
            module._buffers[name] = tensor
    weight = tensors.get("weight")
    if weight is None:
        return
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:
            module.groups = weight.shape[0]  # depthwise
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


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


def zero_model(model: nn.Module, graph: Graph, kept: Kept) -> nn.Module:
    """Return a dense-shaped copy whose removed channels are zero where made and unread where used."""
    zeroed = copy.deepcopy(model)
    modules = dict(zeroed.named_modules())
    with torch.no_grad():
        for group in graph.groups:
            dropped = torch.ones(group.width, dtype=torch.bool)
            dropped[kept[group.name]] = False
            for slot in group.slots:
                indices = torch.tensor(slot.positions)[dropped].flatten()
                module = modules[slot.module]
                if isinstance(module, nn.PReLU):
                    continue
                if isinstance(module, OptionAShortcut):
                    silent = indices if slot.axis == "out" else torch.isin(module.source, indices)
                    module.source[silent] = -1
                    continue
                if slot.axis == "in":
                    module.weight[:, indices] = 0
                    continue
                for tensor in (module.weight, module.bias):
                    if isinstance(tensor, Tensor):
                        tensor[indices] = 0
    return zeroed


def surgery(model: nn.Module, graph: Graph, kept: Kept) -> nn.Module:
    """Remove the dropped channels of a copy of ``model`` through torch-pruning."""
    dependencies = build_dependencies(model, blank_image(model, graph.input_shape))
    modules = dict(dependencies.model.named_modules())
    by_root: dict[str, list[ChannelGroup]] = defaultdict(list)
    for group in graph.groups:
        by_root[group.root].append(group)
    for root, groups in by_root.items():
        dropped: list[int] = []
        for group in groups:
            stays = set(kept[group.name].tolist())
            dropped += [c for i, own in enumerate(group.root_channels) if i not in stays for c in own]
        if not dropped:
            continue
        module = modules[root]
        prune_out = dependencies.graph.get_pruner_of_module(module).prune_out_channels
        dependencies.graph.get_pruning_group(module, prune_out, sorted(dropped)).prune(record_history=False)
    return dependencies.model
